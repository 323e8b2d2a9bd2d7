"""Tables go to their places in a document, or nothing is written."""

from __future__ import annotations

import pytest

from benchmarks.study.document import refresh

PLACES = "# Page\n\n<!-- table: one -->\nold\n<!-- end -->\n\nText.\n"


def test_tables_replace_what_stands_in_their_places(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(PLACES)
    refresh(document, {"one": "| new |"})
    assert document.read_text() == PLACES.replace("old\n", "\n| new |\n\n")


def test_a_place_that_is_missing_is_an_error_and_nothing_is_written(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(PLACES)
    with pytest.raises(ValueError, match="two"):
        refresh(document, {"one": "| new |", "two": "| more |"})
    assert document.read_text() == PLACES
