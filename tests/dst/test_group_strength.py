"""The controller leads groups to k although they answer late, whatever the scale of λ."""

from __future__ import annotations

import itertools

import pytest

from sparsify.dst.group_strength import StrengthController


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("first", [0.1, 0.2])
def test_groups_that_shrink_by_lambda_reach_k_in_time_and_not_at_once(scale, first):
    """A hundred groups of sizes 1 to 2, each smaller by λ/scale at every step: a pure delay."""
    controller = StrengthController(groups=100, wanted=25, steps=500, every=5)
    sizes = [1 + place / 100 for place in range(100)]
    strength, falling, alive = first * scale / 500, 0.0, 100
    reached, counts = None, []
    for step in range(1, 600):
        sizes = [max(0.0, size - strength / scale) for size in sizes]
        before, alive = alive, sum(size > 0 for size in sizes)
        falling += 0.04 * (before - alive - falling)
        if controller.due(step):
            strength = controller.adjusted(strength, alive, falling, step)
        counts.append(alive)
        if alive <= 26:
            reached = step
            break
    assert reached is not None
    assert 100 < reached < 560
    assert max(before - after for before, after in itertools.pairwise(counts)) <= 10


def test_it_changes_at_its_steps_only_and_within_bounds():
    controller = StrengthController(groups=100, wanted=25, steps=500, every=5)
    assert [step for step in range(1, 12) if controller.due(step)] == [5, 10]
    assert 1.0 < controller.adjusted(1.0, 100, 0.0, 400) <= 1.11
    assert 0.8 < controller.adjusted(1.0, 100, 20.0, 100) < 1.0
    assert controller.target(0) == 100
    assert controller.target(500) == controller.target(900) == 25
