"""The Python blocks of docs/scaling.md run as they stand, in one session."""

from __future__ import annotations

import warnings
from pathlib import Path

from tests.pages import printed, python_blocks

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = python_blocks(PAGE)
    assert len(blocks) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lines = printed("\n".join(blocks)).splitlines()
    assert (tmp_path / "base.json").is_file()
    assert len(lines) == 5
    assert lines[0].rpartition("std=")[0] in text
    for part in (lines[1:4], lines[4:]):
        assert "\n".join(["```", *part, "```"]) in text
    assert (tmp_path / "check.png").is_file()
