"""Widths for a density that the pattern fixes (n:m): whole-model iso-FLOP with nothing else to turn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from sparsify.planning.budget import Solution, factor_for
from sparsify.planning.cost import DEFAULT_MULTIPLE, Cost

_TOLERANCE = 0.001
_PAIRED = 40
"""Pairs of groups are tried up to this many groups."""


def width_at_density(cost: Cost, density: float, multiple: int | None = None) -> Solution:
    """Solves the widths at which the model has its FLOPs, every masked weight at `density`.

    All groups get the same factor, rounded. Then groups are moved to their other neighbouring width, one or
    two at a time, while that brings the FLOPs nearer to the budget, until they are within 0.1 %. Without
    `multiple` finer roundings are tried where 8 channels are too coarse.

    Raises:
        BudgetError: No FLOPs grow with the width.
    """
    factor = factor_for(cost, density)
    multiples = (multiple,) if multiple is not None else (DEFAULT_MULTIPLE, 4, 2, 1)
    found: list[tuple[float, dict[str, int]]] = []
    for channels in multiples:
        widths = _nearest(cost, factor, channels, density)
        found.append((abs(_excess(cost, widths, density)), widths))
        if found[-1][0] <= _TOLERANCE:
            break
    widths = min(found, key=lambda pair: pair[0])[1]
    return Solution(widths, (density,) * len(cost.masked))


def _nearest(cost: Cost, factor: float, multiple: int, density: float) -> dict[str, int]:
    """Neighbouring roundings of the scaled widths, chosen group by group."""
    choices = {
        group.id: cost.neighbours(group, factor, multiple)
        for group in cost.facts.groups
        if group.id in cost.widened
    }
    widths = cost.rounded(factor, multiple)
    error = abs(_excess(cost, widths, density))
    while error > _TOLERANCE:
        moved = min(
            _moves(widths, choices), key=lambda other: abs(_excess(cost, other, density)), default=None
        )
        if moved is None or abs(_excess(cost, moved, density)) >= error:
            break
        widths, error = moved, abs(_excess(cost, moved, density))
    return widths


def _moves(widths: dict[str, int], choices: dict[str, tuple[int, int]]) -> Iterator[dict[str, int]]:
    """The widths with one group, or two, at the other of its choices."""
    free = [name for name, (low, high) in choices.items() if low != high]
    for count in (1, 2) if len(free) <= _PAIRED else (1,):
        for names in combinations(free, count):
            yield widths | {name: sum(choices[name]) - widths[name] for name in names}


def _excess(cost: Cost, widths: dict[str, int], density: float) -> float:
    """FLOPs over the budget, as a share of it."""
    return (cost.fixed(widths) + density * sum(cost.flops(widths))) / cost.budget - 1
