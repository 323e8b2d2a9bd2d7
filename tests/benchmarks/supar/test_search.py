"""The searches of the study find the optimum of curves that are known, from either side."""

from __future__ import annotations

import pytest

from benchmarks.study.ledger import Ledger
from benchmarks.supar import search
from benchmarks.supar.curves import Curve
from benchmarks.supar.runs import DIVERGED, Cell, Run, loss_of, losses_of

CELL = Cell()


@pytest.fixture
def ledger():
    return Ledger(Run)


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
def test_the_best_rate_ends_between_measured_neighbours(ledger, optimum, margin):
    _train(
        ledger,
        lambda: search.wanted(CELL, ledger, -8, margin),
        lambda run: 2.0 + 0.1 * (run.log2_lr - optimum) ** 2,
    )
    measured = sorted(losses_of(ledger, CELL))
    assert search.best_rate(CELL, ledger) == optimum
    assert set(range(optimum - margin, optimum + margin + 1)) <= set(measured)
    assert measured == list(range(measured[0], measured[-1] + 1))


def test_the_search_goes_to_the_end_of_the_allowed_rates_and_stops(ledger):
    _train(ledger, lambda: search.wanted(CELL, ledger, 0, 2), lambda run: 2.0 + 0.01 * run.log2_lr)
    assert min(losses_of(ledger, CELL)) == search.LOWEST
    assert max(losses_of(ledger, CELL)) == search.HIGHEST


def test_rates_that_diverge_are_no_optimum_and_the_search_goes_down(ledger):
    _train(
        ledger,
        lambda: search.wanted(CELL, ledger, -3, 1),
        lambda run: None if run.log2_lr > -7 else 2.0 + 0.1 * (run.log2_lr + 7) ** 2,
    )
    assert search.best_rate(CELL, ledger) == -7
    assert Curve.of(CELL, ledger).best == -7


def test_more_seeds_follow_the_mean_where_the_first_seed_was_lucky(ledger):

    def loss(run):
        lucky = 0.5 if run.seed == 0 and run.log2_lr == -9 else 0.0
        return 2.0 + 0.1 * (run.log2_lr + 7) ** 2 - lucky

    _train(ledger, lambda: search.wanted(CELL, ledger, -8, 1), loss)
    assert search.best_rate(CELL, ledger) == -9
    _train(ledger, lambda: search.more_seeds(CELL, ledger, 3), loss)
    assert search.best_rate(CELL, ledger) == -7
    assert all(len(losses_of(ledger, CELL)[rate]) == 3 for rate in (-8, -7, -6))


def test_the_parabola_finds_an_optimum_between_two_rates(ledger):
    for rate in (-9, -8, -7):
        ledger.add(Run(CELL, rate), {"loss": 2.0 + 0.1 * (rate + 7.7) ** 2})
    curve = Curve.of(CELL, ledger)
    assert curve.best == -8
    assert curve.bracketed
    assert curve.optimum == pytest.approx(-7.7)


def test_a_run_that_diverged_is_infinitely_bad(ledger):
    ledger.add(Run(CELL, -5), {"loss": None})
    ledger.add(Run(CELL, -6, 2), {"loss": 3.0})
    assert loss_of(ledger, Run(CELL, -5)) == DIVERGED
    assert losses_of(ledger, CELL) == {-5: {0: DIVERGED}, -6: {2: 3.0}}


def test_density_one_is_the_base_whatever_the_parameterization():
    assert CELL.at(1.0, "supar") == CELL.at(1.0, "sp") == CELL


def test_a_best_rate_at_the_end_of_a_curve_is_not_called_an_optimum(ledger):
    for rate in (-9, -8, -7):
        ledger.add(Run(CELL, rate), {"loss": 2.0 - 0.1 * rate})
    curve = Curve.of(CELL, ledger)
    assert not curve.bracketed
    assert curve.optimum == curve.best == -7


def test_seeds_that_come_one_by_one_do_not_move_the_centre(ledger):

    def loss(run):
        return 2.0 + 0.1 * (run.log2_lr + 8) ** 2 + 0.001 * run.seed

    _train(ledger, lambda: search.wanted(CELL, ledger, -8, 1), loss)
    while runs := search.more_seeds(CELL, ledger, 3):
        ledger.add(runs[0], {"loss": loss(runs[0])})
    assert sorted(losses_of(ledger, CELL)) == [-9, -8, -7]
