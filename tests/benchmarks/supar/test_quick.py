"""The study of SμPar at its toy size, whole: it ends, resumes, repeats itself and reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.study.command import command
from benchmarks.study.document import refresh
from benchmarks.study.engine import Training, outstanding
from benchmarks.study.ledger import Ledger
from benchmarks.supar.report import collect, contents
from benchmarks.supar.study import FULL, QUICK
from benchmarks.supar.training import build
from sparsify.train.sources import FASHION_MNIST

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"


def _run(folder, *arguments):
    return command("supar", None, FULL, QUICK, ["--quick", "--workers", "0", "-o", str(folder), *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a finished quick study, without the CNN where its images are not installed."""
    folder = tmp_path_factory.mktemp("supar")
    parts = [part for part in QUICK.parts if part != "cnn" or FASHION_MNIST.is_dir()]
    assert _run(folder, *(word for part in parts for word in ("--part", part))) == 0
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
    before = dict(Ledger(QUICK.kind, file).items())
    content = file.read_text()
    file.write_text(content[: content.rindex("\n", 0, -1) + 40])
    torn = Ledger(QUICK.kind, file)
    assert len(torn) == len(before) - 1
    Training(QUICK, torn, ["longer"], 0, {}).run()
    after = dict(Ledger(QUICK.kind, file).items())
    assert after.keys() == before.keys()
    losses = [[found[run]["loss"] for run in before] for found in (before, after)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_the_published_runs_are_those_of_the_study(tmp_path):
    ledger = Ledger(FULL.kind, RESULTS / "supar" / "runs.jsonl")
    assert len(ledger) > 700 and outstanding(FULL, ledger, FULL.parts) == []
    (tmp_path / "supar.md").write_text((RESULTS / "supar.md").read_text())
    _, found = collect(FULL.size, ledger)
    refresh(tmp_path / "supar.md", contents(FULL.size, ledger, found, "supar"))
    assert (tmp_path / "supar.md").read_text() == (RESULTS / "supar.md").read_text()


def test_a_base_is_drawn_from_its_seed():
    runs = [run for run in outstanding(QUICK, Ledger(QUICK.kind), QUICK.parts) if run.cell.density == 1.0]
    for cell in {run.cell.model: run.cell for run in runs}.values():
        first, again, other = (build(cell, seed).state_dict() for seed in (0, 0, 1))
        names = [name for name, value in first.items() if value.dim() > 1]
        assert names and all(first[name].equal(again[name]) for name in names)
        assert not any(first[name].equal(other[name]) for name in names)
