"""The searches of the study find the optimum of curves that are known, from either side."""

from __future__ import annotations

import json

import pytest

ledgers = pytest.importorskip("ledger")
search = pytest.importorskip("search")
curves = pytest.importorskip("curves")

CELL = ledgers.Cell()


def _train(ledger, wanted, loss):
    """Runs whatever `wanted` asks for until it asks no more; returns the number of runs."""
    count = 0
    while runs := wanted():
        for run in runs:
            ledger.add(run, {"loss": loss(run)})
            count += 1
    return count


@pytest.mark.parametrize("optimum", [-12, -8, -3])
@pytest.mark.parametrize("margin", [1, 2])
def test_the_best_rate_ends_between_measured_neighbours(tmp_path, optimum, margin):
    ledger = ledgers.Ledger(tmp_path / "runs.jsonl")
    _train(
        ledger,
        lambda: search.wanted(CELL, ledger, -8, margin),
        lambda run: 2.0 + 0.1 * (run.log2_lr - optimum) ** 2,
    )
    measured = sorted(ledger.losses(CELL))
    assert search.best_rate(CELL, ledger) == optimum
    assert set(range(optimum - margin, optimum + margin + 1)) <= set(measured)
    assert measured == list(range(measured[0], measured[-1] + 1))


def test_the_search_goes_to_the_end_of_the_allowed_rates_and_stops(tmp_path):
    ledger = ledgers.Ledger(tmp_path / "runs.jsonl")
    _train(ledger, lambda: search.wanted(CELL, ledger, 0, 2), lambda run: 2.0 + 0.01 * run.log2_lr)
    assert min(ledger.losses(CELL)) == search.LOWEST
    assert max(ledger.losses(CELL)) == search.HIGHEST


def test_rates_that_diverge_are_no_optimum_and_the_search_goes_down(tmp_path):
    ledger = ledgers.Ledger(tmp_path / "runs.jsonl")
    _train(
        ledger,
        lambda: search.wanted(CELL, ledger, -3, 1),
        lambda run: None if run.log2_lr > -7 else 2.0 + 0.1 * (run.log2_lr + 7) ** 2,
    )
    assert search.best_rate(CELL, ledger) == -7
    assert curves.Curve.of(CELL, ledger).best == -7


def test_more_seeds_follow_the_mean_where_the_first_seed_was_lucky(tmp_path):
    ledger = ledgers.Ledger(tmp_path / "runs.jsonl")

    def loss(run):
        lucky = 0.5 if run.seed == 0 and run.log2_lr == -9 else 0.0
        return 2.0 + 0.1 * (run.log2_lr + 7) ** 2 - lucky

    _train(ledger, lambda: search.wanted(CELL, ledger, -8, 1), loss)
    assert search.best_rate(CELL, ledger) == -9
    _train(ledger, lambda: search.more_seeds(CELL, ledger, 3), loss)
    assert search.best_rate(CELL, ledger) == -7
    assert all(len(ledger.losses(CELL)[rate]) == 3 for rate in (-8, -7, -6))


def test_the_parabola_finds_an_optimum_between_two_rates(tmp_path):
    ledger = ledgers.Ledger(tmp_path / "runs.jsonl")
    for rate in (-9, -8, -7):
        ledger.add(ledgers.Run(CELL, rate), {"loss": 2.0 + 0.1 * (rate + 7.7) ** 2})
    curve = curves.Curve.of(CELL, ledger)
    assert curve.best == -8
    assert curve.bracketed
    assert curve.optimum == pytest.approx(-7.7)


def test_a_ledger_reads_back_what_it_wrote_and_drops_a_torn_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    first = ledgers.Ledger(path)
    wide = CELL.at(0.25, "supar", family="wide")
    first.add(ledgers.Run(wide, -5, 2), {"loss": 2.5})
    first.add(ledgers.Run(CELL, -5), {"loss": None})
    path.write_text(path.read_text() + json.dumps({"cell": {}})[:6])
    again = ledgers.Ledger(path)
    assert len(again) == 2
    assert again.loss(ledgers.Run(wide, -5, 2)) == 2.5
    assert again.loss(ledgers.Run(CELL, -5)) == ledgers.DIVERGED
    again.add(ledgers.Run(CELL, -6), {"loss": 3.0})
    assert len(ledgers.Ledger(path)) == 3


def test_density_one_is_the_base_whatever_the_parameterization():
    assert CELL.at(1.0, "supar") == CELL.at(1.0, "sp") == CELL


def test_a_best_rate_at_the_end_of_a_curve_is_not_called_an_optimum(tmp_path):
    ledger = ledgers.Ledger(tmp_path / "runs.jsonl")
    for rate in (-9, -8, -7):
        ledger.add(ledgers.Run(CELL, rate), {"loss": 2.0 - 0.1 * rate})
    curve = curves.Curve.of(CELL, ledger)
    assert not curve.bracketed
    assert curve.optimum == curve.best == -7


def test_seeds_that_come_one_by_one_do_not_move_the_centre(tmp_path):
    ledger = ledgers.Ledger(tmp_path / "runs.jsonl")

    def loss(run):
        return 2.0 + 0.1 * (run.log2_lr + 8) ** 2 + 0.001 * run.seed

    _train(ledger, lambda: search.wanted(CELL, ledger, -8, 1), loss)
    while runs := search.more_seeds(CELL, ledger, 3):
        ledger.add(runs[0], {"loss": loss(runs[0])})
    assert sorted(ledger.losses(CELL)) == [-9, -8, -7]
