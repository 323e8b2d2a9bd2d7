"""How many weights go and come in each layer, where the layers share one budget (sparse momentum)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LIMIT = 0.99
_SPARE = 0.2


@dataclass(frozen=True)
class Layer:
    """What the sharing needs to know of one layer.

    Attributes:
        active: Active weights.
        numel: All weights.
        step: Weights by which its count can change: 1, the weights of a block, a row's worth for fan-in.
        cost: What one weight takes from the budget: 1, or the FLOPs that it costs.
        momentum: Mean magnitude of the momentum of active weights, at least 0.
    """

    active: int
    numel: int
    step: int
    cost: float
    momentum: float


def shares(layers: Sequence[Layer]) -> list[float]:
    """Momentum of every layer over that of all; equal where all are zero."""
    total = sum(layer.momentum for layer in layers)
    return [layer.momentum / total if total > 0 else 1 / len(layers) for layer in layers]


def removals(layers: Sequence[Layer], rate: float, unit: Sequence[int]) -> list[int]:
    """Weights to remove from each layer, ⌈p_l · active⌉ in units, leaving at least one unit.

    p_l is the rate; in a layer of sparsity below 0.2 that is to grow it is no more than that sparsity.

    Args:
        layers: All layers that take part.
        rate: p.
        unit: Weights that go together, by layer: 1, or those of a block.
    """
    found = []
    for layer, share, size in zip(layers, shares(layers), unit, strict=True):
        sparsity = 1 - layer.active / layer.numel
        own = min(sparsity, rate) if sparsity < _SPARE and share > 1 / len(layers) else rate
        units = layer.active // size
        # The product of two floats may lie above a whole number by its last bit.
        found.append(size * min(math.ceil(own * units - 1e-9), units - 1))
    return found


def shared_out(layers: Sequence[Layer], removed: Sequence[int], budget: float) -> list[int]:
    """New counts of all layers, whose costs add up to the budget.

    What the removal left of the budget is shared out in proportion to momentum. A layer takes at most 0.99 of
    its free places; what is over goes to the others in equal parts, again and again. Then counts are rounded
    down to steps and the rest is given out by largest remainder, as far as steps fit into it. With steps and
    costs of 1 the sum is the budget exactly.

    Args:
        layers: All layers that take part, before the removal.
        removed: Weights removed from each.
        budget: What all active weights together may cost.

    Source: TimDettmers/sparse_learning; Dettmers and Zettlemoyer (arXiv 1907.04840), algorithm 1.
    """
    kept = [layer.active - gone for layer, gone in zip(layers, removed, strict=True)]
    room = [layer.numel - stays for layer, stays in zip(layers, kept, strict=True)]
    free = budget - sum(stays * layer.cost for layer, stays in zip(layers, kept, strict=True))
    costs = [layer.cost for layer in layers]
    growth = _spread(shares(layers), costs, [_LIMIT * places for places in room], free)
    wanted = [stays + grown for stays, grown in zip(kept, growth, strict=True)]
    return _rounded(layers, wanted, budget)


def _spread(
    share: Sequence[float], cost: Sequence[float], limit: Sequence[float], free: float
) -> list[float]:
    """Weights to grow in each layer: in proportion to its share, no more than its limit, free in all."""
    weight = sum(part * price for part, price in zip(share, cost, strict=True))
    growth = [max(0.0, free) * part / weight for part in share]
    for _ in range(len(growth)):
        over = sum(
            max(0.0, grown - most) * price for grown, most, price in zip(growth, limit, cost, strict=True)
        )
        growth = [min(grown, most) for grown, most in zip(growth, limit, strict=True)]
        open_ones = [at for at, grown in enumerate(growth) if grown < limit[at]]
        if over <= 1e-9 * max(1.0, free) or not open_ones:
            break
        each = over / sum(cost[at] for at in open_ones)
        for at in open_ones:
            growth[at] += each
    return [min(grown, most) for grown, most in zip(growth, limit, strict=True)]


def _rounded(layers: Sequence[Layer], wanted: Sequence[float], budget: float) -> list[int]:
    """Counts in whole steps, at least one each, that cost no more than the budget and nearly all of it."""
    steps = [
        max(1, math.floor(count / layer.step + 1e-9)) for count, layer in zip(wanted, layers, strict=True)
    ]
    most = [layer.numel // layer.step for layer in layers]
    price = [layer.step * layer.cost for layer in layers]
    remainder = [
        count / layer.step - whole for count, layer, whole in zip(wanted, layers, steps, strict=True)
    ]
    left = budget - sum(whole * one for whole, one in zip(steps, price, strict=True))
    order = sorted(range(len(layers)), key=lambda at: (-remainder[at], at))
    tolerance = 1e-9 * max(1.0, budget)
    while left < -tolerance:
        reducible = [at for at in reversed(order) if steps[at] > 1]
        if not reducible:
            break
        steps[reducible[0]] -= 1
        left += price[reducible[0]]
    given = True
    while given:
        given = False
        for at in order:
            if steps[at] < most[at] and price[at] <= left + tolerance:
                steps[at] += 1
                left -= price[at]
                given = True
    return [whole * layer.step for whole, layer in zip(steps, layers, strict=True)]
