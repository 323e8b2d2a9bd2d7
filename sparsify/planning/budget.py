"""Iso-FLOP solves over the whole model.

With F_m(w) the FLOPs of the masked layers at density 1, F_f(w) those of everything else, and w₀ the given
widths, the budget is B = F_f(w₀) + F_m(w₀). Either the width factor k is found with
F_f(k·w₀) + ρ·F_m(k·w₀) = B, or the density ρ = (B − F_f(w)) / F_m(w) for widths that are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import floor

from sparsify.errors import BudgetError
from sparsify.planning.cost import DEFAULT_MULTIPLE, Cost, Widths
from sparsify.planning.distribution import Profile, spread

_WIDEST = 2.0**20


@dataclass(frozen=True)
class Solution:
    """Widths by group and densities by masked weight."""

    widths: dict[str, int]
    densities: tuple[float, ...]


def density_at(cost: Cost, profile: Profile, widths: dict[str, int]) -> Solution:
    """Solves the density for given widths.

    Raises:
        BudgetError: Everything that is not masked takes the whole budget, or more.
    """
    left = cost.budget - cost.fixed(widths)
    return Solution(widths, spread(_shares(cost, profile, widths), cost.flops(widths), left))


def width_for(cost: Cost, profile: Profile, sparsity: float, multiple: int | None = None) -> Solution:
    """Solves the width factor for a sparsity, rounds every group, and solves the density again.

    Groups are rounded to `multiple` channels; without one, to 8. In narrow models 8 may land far from the
    sparsity asked for; then the coarsest rounding is taken that stays near it.

    Raises:
        BudgetError: No FLOPs grow with the width, or no density meets the budget at the given multiple.
    """
    density = 1 - sparsity
    factor = _root(lambda k: cost.fixed(cost.scaled(k)) + _masked(cost, profile, k, density) - cost.budget)
    tolerance = 0.25 * min(density, sparsity)
    if multiple is not None:
        return _at_multiple(cost, factor, multiple, lambda widths: density_at(cost, profile, widths))
    return _rounded(cost, factor, density, tolerance, lambda widths: density_at(cost, profile, widths))


def factor_for(cost: Cost, density: float) -> float:
    """The width factor, not rounded, at which the model has its FLOPs with every masked weight at `density`.

    Raises:
        BudgetError: No FLOPs grow with the width.
    """

    def excess(factor: float) -> float:
        widths = cost.scaled(factor)
        return cost.fixed(widths) + density * sum(cost.flops(widths)) - cost.budget

    return _root(excess)


def width_for_layers(cost: Cost, sparsity: float, multiple: int | None = None) -> Solution:
    """The per-layer rule: every masked layer keeps its own FLOPs, the rest of the model grows as it does.

    The width factor is the one at which the masked layers together have the density asked for.

    Raises:
        BudgetError: No FLOPs grow with the width.
    """
    density = 1 - sparsity
    base = sum(cost.flops(cost.base))
    factor = _root(lambda k: density * sum(cost.flops(cost.scaled(k))) - base)
    tolerance = 0.25 * min(density, sparsity)
    if multiple is not None:
        return _at_multiple(cost, factor, multiple, lambda widths: density_by_layer(cost, widths))
    return _rounded(cost, factor, density, tolerance, lambda widths: density_by_layer(cost, widths))


def density_by_layer(cost: Cost, widths: dict[str, int]) -> Solution:
    """Densities at which every masked layer has the FLOPs it had."""
    pairs = zip(cost.flops(cost.base), cost.flops(widths), strict=True)
    return Solution(widths, tuple(before / after for before, after in pairs))


def density_of(cost: Cost, profile: Profile, sparsity: float, widths: dict[str, int]) -> Solution:
    """Densities with a given mean over the masked weights, whatever that costs."""
    sizes = cost.sizes(widths)
    shares = _shares(cost, profile, widths)
    return Solution(widths, spread(shares, sizes, (1 - sparsity) * sum(sizes)))


def mean_density(cost: Cost, solution: Solution) -> float:
    """Kept share of all masked weights together."""
    sizes = cost.sizes(solution.widths)
    return sum(size * own for size, own in zip(sizes, solution.densities, strict=True)) / sum(sizes)


def largest_width(cost: Cost, multiple: int = 1) -> float:
    """Largest width factor, in hundredths, at which some density meets the budget.

    Returns:
        The factor; 1 where any widening is too much, infinity where none is.
    """

    def excess(widths: Widths) -> float:
        one_each = zip(cost.flops(widths), cost.sizes(widths), strict=True)
        return cost.fixed(widths) + sum(flops / size for flops, size in one_each) - cost.budget

    try:
        hundredths = floor(100 * _root(lambda k: excess(cost.scaled(k))))
    except BudgetError:
        return float("inf")
    while hundredths > 100 and excess(cost.rounded(hundredths / 100, multiple)) > 0:
        hundredths -= 1
    return hundredths / 100


def _shares(cost: Cost, profile: Profile, widths: Widths) -> tuple[float, ...]:
    given = [weight.shape(cost.base) for weight in cost.masked]
    return profile([weight.shape(widths) for weight in cost.masked], given)


def _masked(cost: Cost, profile: Profile, factor: float, density: float) -> float:
    """FLOPs of the masked weights at a width factor and a mean density."""
    widths = cost.scaled(factor)
    sizes = cost.sizes(widths)
    densities = spread(_shares(cost, profile, widths), sizes, density * sum(sizes))
    return sum(flops * own for flops, own in zip(cost.flops(widths), densities, strict=True))


def _at_multiple(
    cost: Cost, factor: float, multiple: int, solve: Callable[[dict[str, int]], Solution]
) -> Solution:
    """Takes the rounding asked for.

    Raises:
        BudgetError: It needs more FLOPs than there are.
    """
    try:
        return solve(cost.rounded(factor, multiple))
    except BudgetError as error:
        raise BudgetError(
            f"with widths in multiples of {multiple} what is not masked takes the whole budget; choose a "
            "smaller multiple, a lower sparsity or scope='inner'"
        ) from error


def _rounded(
    cost: Cost, factor: float, density: float, tolerance: float, solve: Callable[[dict[str, int]], Solution]
) -> Solution:
    """Takes the coarsest rounding whose density stays near the one asked for."""
    found: list[tuple[float, Solution]] = []
    for multiple in (DEFAULT_MULTIPLE, 4, 2, 1):
        try:
            solution = solve(cost.rounded(factor, multiple))
        except BudgetError:
            continue
        error = abs(mean_density(cost, solution) - density)
        if error <= tolerance:
            return solution
        found.append((error, solution))
    if not found:
        return solve(cost.rounded(1.0, 1))
    return min(found, key=lambda pair: pair[0])[1]


def _root(excess: Callable[[float], float], least: float = 1.0) -> float:
    """Finds k ≥ 1 with excess(k) = 0 for an increasing function, by bisection.

    Raises:
        BudgetError: The function never becomes positive.
    """
    low, high = least, 2.0
    while excess(high) <= 0:
        low, high = high, 2 * high
        if high > _WIDEST:
            raise BudgetError("the FLOPs of this model do not grow with its widths: nothing to widen")
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) <= 0 else (low, middle)
    return low
