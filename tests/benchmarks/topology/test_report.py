"""What the tables claim follows from the runs, whatever those are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.study.engine import outstanding
from benchmarks.study.ledger import Ledger
from benchmarks.topology import report
from benchmarks.topology.runs import METHODS, SPARSE, Of, Run, base, cell, tuned
from benchmarks.topology.study import FULL, Topology

OF = Of((0.01, 0.1), 10, 100, (0.1, 0.2))
DENSE = base("lenet", OF, "erk", 100)
DOCUMENT = Path(__file__).parents[3] / "docs" / "results" / "topology.md"


def _filled(accuracy):
    """A ledger of three seeds; `accuracy(method, density, seed)` says what each reached."""
    ledger = Ledger(Run)
    for seed in range(3):
        for density, method in [(1.0, "dense"), *((d, m) for d in OF.densities for m in SPARSE)]:
            reached = accuracy(method, density, seed)
            run = cell(replace(DENSE, seed=seed), method, density)
            ledger.add(
                run,
                {
                    "accuracy": reached,
                    "loss": 1.0,
                    "seconds": 1.0,
                    "sparse_density": density,
                    "idle_outputs": {"fc1": seed, "fc2": 1},
                },
            )
    ledger.add(replace(DENSE, lr=0.2), {"accuracy": 1.0, "loss": 2.0})
    return report.Results(OF, DENSE, ledger)


def _as_expected(method, density, seed):
    gains = {"static": 0.0, "gmp": 4.0, "rigl": 3.0, "srigl": 2.5, "srigl-no-ablation": 2.0}
    return 80.0 + seed + gains.get(method, 1.0) + 0.1 * seed * (method == "set")


def test_results_as_in_the_papers_are_seen():
    rows = report.expected(_filled(_as_expected))
    assert [row[2] for row in rows] == ["yes", "yes", "yes"]
    assert rows[2][3].startswith("mean over densities: GMP 85.00, RigL 84.00")


def test_a_method_below_static_is_named_with_its_difference():
    def accuracy(method, density, seed):
        return _as_expected(method, density, seed) - (5 if (method, density) == ("set", 0.01) else 0)

    claim = report.expected(_filled(accuracy))[0]
    assert claim[2] == "6 of 7"
    assert claim[3] == "SET at 1 %: -3.90 ± 0.10"


def test_a_gain_within_the_spread_is_said_to_be():
    def accuracy(method, density, seed):
        return _as_expected(method, density, seed) + (seed - 1) * 9 * (method == "srigl")

    claim = report.expected(_filled(accuracy))[1]
    assert claim[2] == "yes"
    assert claim[3] == "with ablation: +0.50 ± 9.00, within the spread"


def test_the_rate_of_the_dense_model_with_the_lowest_loss_is_taken():
    found = _filled(_as_expected)
    assert tuned(DENSE, OF, found.ledger) == DENSE
    assert tuned(DENSE, replace(OF, rates=(0.1, 0.2, 0.4)), found.ledger) is None


def test_tables_hold_every_method_and_the_document_has_their_places(tmp_path):
    document = tmp_path / "topology.md"
    shutil.copy(DOCUMENT, document)
    found = _filled(_as_expected)
    summary = report.write([found], tmp_path, document)
    text = document.read_text()
    for method in SPARSE:
        assert f"| {METHODS[method].label} |" in text
    assert "| SET | +1.10 ± 0.10 | +1.10 ± 0.10 |" in text
    assert "| RigL | 10.00 %, 2 | 1.00 %, 2 |" in text
    assert summary["lenet"]["above_static"]["rigl"]["0.01"]["seeds"] == {"0": 3.0, "1": 3.0, "2": 3.0}
    assert (tmp_path / "accuracy.png").stat().st_size > 5000


def test_the_whole_study_compares_equal_things_and_fits_its_time():
    runs = outstanding(FULL, Ledger(Run), FULL.parts)
    sparse = [run for run in runs if run.method != "dense"]
    assert {run.seed for run in sparse} == {0, 1, 2}
    assert {(run.method, run.density) for run in sparse if run.model == "lenet"} == {
        (method, density) for method in SPARSE for density in (0.01, 0.02, 0.05, 0.1)
    }
    for model in ("lenet", "resnet"):
        rates = {run.lr for run in sparse if run.model == model}
        assert len(rates) == 1
    assert sum(FULL.seconds(run) for run in runs) / 60 <= 100
    assert len(runs) == len(set(runs))


@pytest.mark.parametrize("method", SPARSE)
def test_only_what_begins_dense_takes_the_dense_initial_weights(method):
    run = cell(DENSE, method, 0.1)
    assert (run.parameterization == "sp") == METHODS[method].begins_dense
    assert (run.steps, run.batch, run.lr, run.seed) == (DENSE.steps, DENSE.batch, DENSE.lr, DENSE.seed)


def test_a_study_of_one_seed_wants_every_cell_once():
    study = Topology(models={"lenet": OF, "resnet": OF}, seeds=1)
    runs = outstanding(study, Ledger(Run), ["lenet"])
    assert len(runs) == len(OF.rates) + len(OF.densities) * len(SPARSE)
