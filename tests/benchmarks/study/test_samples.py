"""Means, spreads and paired differences over seeds."""

from __future__ import annotations

import pytest

from benchmarks.study.ledger import Ledger
from benchmarks.study.samples import Sample
from tests.benchmarks.study.counting import Inner, Sum


def test_a_sample_takes_all_seeds_of_a_run_and_no_other_run():
    ledger = Ledger(Sum)
    for seed in (2, 0, 1):
        ledger.add(Sum(seed=seed), {"value": seed * 1.0})
    ledger.add(Sum(Inner("b")), {"value": 50.0})
    ledger.add(Sum(seed=4), {"value": None})
    sample = Sample.of(ledger, Sum(seed=9), "value")
    assert sample.values == {0: 0.0, 1: 1.0, 2: 2.0}
    assert (sample.mean, sample.std) == (1.0, 1.0)


def test_differences_are_paired_by_seed():
    first, second = Sample({0: 10.0, 1: 21.0, 2: 32.0}), Sample({0: 9.0, 1: 20.0, 3: 5.0})
    difference = first.minus(second)
    assert difference.values == {0: 1.0, 1: 1.0}
    assert difference.std == 0.0
    assert difference.exceeds_spread
    assert difference.text(sign=True) == "+1.00 ± 0.00"


def test_one_seed_has_no_spread_to_exceed():
    one = Sample({0: 3.0})
    assert one.std is None
    assert not one.exceeds_spread
    assert one.text(1) == "3.0"


def test_a_mean_inside_the_spread_does_not_exceed_it():
    assert not Sample({0: 1.0, 1: -0.5, 2: 0.2}).exceeds_spread


def test_nothing_is_a_dash():
    assert Sample({}).text() == "–"
    assert Sample({}).to_json() == {}
    with pytest.raises(ValueError, match="mean requires"):
        _ = Sample({}).mean
