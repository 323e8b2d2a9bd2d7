"""From densities to exact counts of kept weights, in the units that the pattern has."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from sparsify.pattern_rules import PatternRule
from sparsify.planning.budget import Solution
from sparsify.planning.cost import Cost


def counted(cost: Cost, solution: Solution, rule: PatternRule, budget: int | None) -> tuple[int, ...]:
    """Turns densities into exact counts of kept weights.

    Without a budget every count is the nearest that the pattern has. With one, counts are rounded down and
    the FLOPs that are left go to the weights with the largest remainders, so that rounding does not add up;
    then single steps are taken wherever they bring the total nearer to the budget.

    Args:
        cost: FLOPs of the model.
        solution: Widths and densities.
        rule: The pattern.
        budget: FLOPs of the whole model, or None.

    Returns:
        Kept weights of each masked weight, at least one unit.
    """
    shapes = [weight.shape(solution.widths) for weight in cost.masked]
    if budget is None or rule.density is not None:
        pairs = zip(shapes, solution.densities, strict=True)
        return tuple(rule.count(shape, min(1.0, density)) for shape, density in pairs)
    units = [rule.unit(shape) for shape in shapes]
    sizes = [round(size) for size in cost.sizes(solution.widths)]
    largest = [size // unit for size, unit in zip(sizes, units, strict=True)]
    scaled = zip(solution.densities, sizes, units, strict=True)
    exact = [density * size / unit for density, size, unit in scaled]
    prices = [
        flops * unit / size
        for flops, unit, size in zip(cost.flops(solution.widths), units, sizes, strict=True)
    ]
    steps = _rounded(exact, largest, prices, budget - cost.fixed(solution.widths))
    return tuple(step * unit for step, unit in zip(steps, units, strict=True))


def _rounded(
    exact: Sequence[float], largest: Sequence[int], prices: Sequence[float], budget: float
) -> list[int]:
    """Whole steps near the exact ones that cost as much as the budget, as nearly as single steps can."""
    steps = [max(1, min(most, floor(want))) for want, most in zip(exact, largest, strict=True)]
    left = budget - sum(price * step for price, step in zip(prices, steps, strict=True))
    for index in sorted(range(len(steps)), key=lambda i: steps[i] - exact[i]):
        if steps[index] < largest[index] and left >= prices[index] / 2:
            steps[index] += 1
            left -= prices[index]
    while True:
        moves = [
            (abs(left - change * prices[index]), index, change)
            for index in range(len(steps))
            for change in (1, -1)
            if 1 <= steps[index] + change <= largest[index] and abs(steps[index] + change - exact[index]) < 1
        ]
        best = min(moves, default=None)
        if best is None or best[0] >= abs(left) * (1 - 1e-9):
            return steps
        _, index, change = best
        steps[index] += change
        left -= change * prices[index]
