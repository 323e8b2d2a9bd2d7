from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.dst.amount import Layer, removals, shared_out, shares
from sparsify.dst.schedule import CosineSchedule, CubicSchedule
from sparsify.errors import UserError


def layer(active, numel, momentum, step=1, cost=1.0):
    return Layer(active, numel, step, cost, momentum)


def test_what_was_removed_goes_where_the_momentum_is():
    """Twelve weights go; shares 1/6 and 5/6 bring back 2 and 10."""
    layers = [layer(10, 100, 1.0), layer(14, 100, 5.0)]
    assert shares(layers) == pytest.approx([1 / 6, 5 / 6])
    removed = removals(layers, 0.5, [1, 1])
    assert removed == [5, 7]
    assert shared_out(layers, removed, 24) == [5 + 2, 7 + 10]


def test_a_full_layer_takes_99_percent_of_its_places_and_the_others_share_the_rest():
    """Layer 0 has 102 free places after the removal and takes 100.98; the others share the rest of 120.

    Shares 0.9, 0.05, 0.05 of 120: 108, 6, 6; 7.02 over, 3.51 each: 9.51 and 9.51. Rounded down that is
    100 + 9 + 9 = 118; the two that are left go to the largest remainders: layer 0, then layer 1.
    """
    layers = [layer(38, 120, 18.0), layer(100, 1000, 1.0), layer(102, 1000, 1.0)]
    removed = [20, 50, 50]
    assert shared_out(layers, removed, 240) == [18 + 101, 50 + 10, 52 + 9]


def test_a_dense_layer_that_would_grow_loses_no_more_than_its_sparsity():
    layers = [layer(90, 100, 3.0), layer(20, 100, 1.0), layer(90, 100, 0.5)]
    assert removals(layers, 0.4, [1, 1, 1]) == [9, 8, 36]
    assert removals([layer(1, 9, 1.0), layer(2, 9, 1.0)], 0.5, [1, 1]) == [0, 1], "one weight stays"
    assert removals([layer(40, 80, 1.0)], 0.3, [8]) == [16], "blocks of 8: two of five"


def test_flops_are_what_stays_where_they_are_the_cost():
    """A weight of layer 0 costs 9: 900 FLOPs go, and come back as 90 weights in each."""
    layers = [layer(100, 1000, 1.0, cost=9.0), layer(900, 1000, 1.0, cost=1.0)]
    counts = shared_out(layers, [50, 450], 1800)
    assert counts == [50 + 90, 450 + 90]
    assert 9 * counts[0] + counts[1] == 1800


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_the_total_is_conserved_exactly(data):
    layers = []
    for _ in range(data.draw(st.integers(1, 6))):
        numel = data.draw(st.integers(2, 400))
        momentum = data.draw(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)))
        layers.append(layer(data.draw(st.integers(1, numel)), numel, momentum))
    removed = removals(layers, data.draw(st.floats(0, 1)), [1] * len(layers))
    total = sum(one.active for one in layers)
    counts = shared_out(layers, removed, total)
    assert sum(counts) == total
    assert all(1 <= count <= one.numel for count, one in zip(counts, layers, strict=True))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_steps_leave_less_than_the_smallest_step_that_has_room(data):
    layers = []
    for _ in range(data.draw(st.integers(2, 5))):
        rows, columns = data.draw(st.integers(1, 12)), data.draw(st.integers(2, 30))
        fan_in = data.draw(st.integers(1, columns))
        layers.append(layer(rows * fan_in, rows * columns, data.draw(st.floats(0.1, 10)), step=rows))
    removed = removals(layers, data.draw(st.floats(0, 0.9)), [1] * len(layers))
    total = sum(one.active for one in layers)
    counts = shared_out(layers, removed, total)
    assert all(count % one.step == 0 and count >= one.step for count, one in zip(counts, layers, strict=True))
    room = [one.step for count, one in zip(counts, layers, strict=True) if count < one.numel]
    assert sum(counts) <= total
    assert not room or total - sum(counts) < min(room)


def test_the_share_falls_to_its_floor():
    schedule = CosineSchedule(every=10, drop_fraction=0.5, stop=100, floor=0.005)
    assert schedule.fraction(0) == pytest.approx(0.5)
    assert schedule.fraction(50) == pytest.approx((0.5 + 0.005) / 2)
    assert schedule.fraction(99) == pytest.approx(0.005, abs=2e-4)


def test_the_cubic_starts_fast_and_ends_exactly():
    """t0 = 10, nΔT = 60: after a third of the way (8/27) is left."""
    schedule = CubicSchedule(every=10, start=13, stop=79)
    assert [step for step in range(100) if schedule.due(step)] == [20, 30, 40, 50, 60, 70]
    assert schedule.remaining(10) == 1.0
    assert schedule.remaining(30) == pytest.approx(8 / 27)
    assert schedule.remaining(40) == pytest.approx(1 / 8)
    assert schedule.remaining(70) == schedule.remaining(99) == 0.0
    with pytest.raises(
        UserError, match="no pruning step fits between step 0 and step 7 with update_every = 10"
    ):
        CubicSchedule(every=10, start=0, stop=7)
