"""The study of SμPar at its toy size, whole: it ends, resumes, repeats itself and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsify.train.sources import FASHION_MNIST

study = pytest.importorskip("study")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a finished quick study, without the CNN where its images are not installed."""
    folder = tmp_path_factory.mktemp("supar")
    for part in (
        ((),)
        if FASHION_MNIST.is_dir()
        else (["--part", "grid"], ["--part", "wide"], ["--part", "transfer"], ["--part", "rigl"])
    ):
        study.main(["--quick", "--workers", "0", *part, "-o", str(folder)])
    return folder


def _lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "quick.jsonl").read_text().splitlines()]


def test_every_part_is_reported(finished):
    summary = json.loads((finished / "quick" / "summary.json").read_text())
    assert {row["label"] for row in summary["grid"]} == {"SμPar", "μP", "SP"}
    assert any(row["cell"]["family"] == "wide" for row in summary["wide"])
    assert {row["cell"]["base_width"] for row in summary["transfer"]} == {0, 32}
    assert {row["cell"]["gamma"] for row in summary["rigl"]} >= {1.0, 0.5}
    assert (finished / "quick" / "grid_rates.png").stat().st_size > 5000


def test_every_line_is_a_run_of_its_own(finished):
    lines = _lines(finished)
    keys = {json.dumps([line["cell"], line["log2_lr"], line["seed"]]) for line in lines}
    assert len(keys) == len(lines) > 12


def test_a_run_that_was_cut_short_is_done_again_and_comes_out_the_same(finished):
    file = finished / "quick.jsonl"
    content = file.read_text()
    before = _lines(finished)
    file.write_text(content[: content.rindex("{", 0, content.rindex('"cell": {')) + 40])
    assert len(file.read_text().splitlines()) == len(before)
    study.main(["--quick", "--workers", "0", "--part", "longer", "-o", str(finished)])
    after = _lines(finished)
    assert [line["cell"] for line in after] == [line["cell"] for line in before]
    assert [line["loss"] for line in after] == pytest.approx([line["loss"] for line in before], rel=1e-6)
