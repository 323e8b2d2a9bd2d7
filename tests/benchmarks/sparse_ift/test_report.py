"""Gains, shares and the sizes of the study follow from the runs, for accuracies and for losses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.sparse_ift import report
from benchmarks.sparse_ift.runs import BASE, Of, Run, base, both, cell, wider
from benchmarks.sparse_ift.study import FULL
from benchmarks.study.engine import outstanding
from benchmarks.study.ledger import Ledger

CELLS = (*both("wide", 0.75, "sp"), wider(0.75))
OF = Of(6, 10, 128, (0.1,), CELLS)
DOCUMENT = Path(__file__).parents[3] / "docs" / "results" / "sparse_ift.md"


def _results(model, gains, sign=1.0):
    """Three seeds whose bases differ by 1 each, and `gains` (by cell and seed) above them."""
    ledger, dense = Ledger(Run), base(model, OF)
    for seed in range(3):
        for which in (BASE, *CELLS):
            reached = 50.0 + seed + sign * gains.get(which, [0.0] * 3)[seed]
            ledger.add(
                cell(replace(dense, seed=seed), which),
                {
                    "loss": reached,
                    "accuracy": reached,
                    "seconds": 1.0,
                    "flops_ratio": 1.0,
                    "parameters": 10,
                    "active_parameters": 5,
                },
            )
    return report.Results(dense, CELLS, ledger)


GAINS = {CELLS[0]: [0.5, -0.5, 0.3], CELLS[1]: [1.0, 1.1, 0.9], CELLS[2]: [2.0, 2.1, 1.9]}


@pytest.mark.parametrize(("model", "sign"), [("resnet", 1.0), ("gpt", -1.0)])
def test_gains_are_paired_and_better_is_positive(model, sign):
    found = _results(model, GAINS, sign)
    rigl = found.gain(CELLS[1])
    assert rigl.mean == pytest.approx(1.0)
    assert rigl.std == pytest.approx(0.1)
    assert rigl.exceeds_spread
    assert not found.gain(CELLS[0]).exceeds_spread
    assert found.share(CELLS[1]) == pytest.approx(0.5)


def test_there_is_no_share_of_a_gain_that_is_none():
    found = _results("resnet", {CELLS[1]: [1.0] * 3, CELLS[2]: [-0.1] * 3})
    assert found.share(CELLS[1]) is None


def test_the_table_says_what_is_within_the_spread():
    lines = report.gains(_results("resnet", GAINS)).splitlines()
    static = next(line for line in lines if line.startswith("| wide 75 % static"))
    rigl = next(line for line in lines if line.startswith("| wide 75 % RigL"))
    assert "+0.10 ± 0.53, within the spread" in static
    assert "| +1.00 ± 0.10 | 3 | 50 % |" in rigl


def test_the_document_has_the_places_of_all_tables(tmp_path):
    document = tmp_path / "sparse_ift.md"
    shutil.copy(DOCUMENT, document)
    found = {"wide": _results("resnet", GAINS), "text": _results("gpt", GAINS, -1.0)}
    summary = report.write(found, FULL.parts, tmp_path, document)
    text = document.read_text()
    assert text.count("Not run yet.") == 2
    assert "| wide 75 % RigL | 1.000 |" in text
    assert summary["wide"]["cells"][1]["exceeds_spread"]
    for plot in ("resnet.png", "gpt.png"):
        assert (tmp_path / plot).stat().st_size > 5000


def test_parts_of_the_resnet_share_their_base():
    runs = outstanding(FULL, Ledger(Run), FULL.parts)
    assert len(runs) == len(set(runs))
    dense = [run for run in runs if run.model == "resnet" and run.family == "dense" and not run.sparsity]
    assert len(dense) == FULL.seeds + len(FULL.models["wide"].rates) - 1
    assert {run.seed for run in runs} == {0, 1, 2}
    assert sum(FULL.seconds(run) for run in runs) / 60 <= 120
