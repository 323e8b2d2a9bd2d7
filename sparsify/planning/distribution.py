"""How a density is spread over layers: ρ_l = min(1, ε·p_l), one profile p a distribution.

The scale ε is found on whatever is to be met exactly: a mean density (weights = sizes) or a FLOP budget
(weights = FLOPs at density 1). A new distribution is one new profile and one row in `PROFILES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from sparsify.errors import BudgetError, UserError

Shapes = Sequence[tuple[int, ...]]
Profile = Callable[[Shapes, Shapes], tuple[float, ...]]
"""From the shapes at the planned widths and those of the given model, a layer each."""


def uniform(shapes: Shapes, given: Shapes) -> tuple[float, ...]:
    """The same density in every layer."""
    return (1.0,) * len(shapes)


def as_dense(shapes: Shapes, given: Shapes) -> tuple[float, ...]:
    """As many active weights in every layer as it has in the given model, times one factor for all."""
    return tuple(prod(old) / prod(new) for old, new in zip(given, shapes, strict=True))


def erk(shapes: Shapes, given: Shapes) -> tuple[float, ...]:
    """Erdős–Rényi-Kernel: Σ shape / Π shape, kernel sizes included, so that small layers stay denser.

    Evci et al. (arXiv 1911.11134), section 3; a layer that would need a density above 1 gets 1.
    """
    return tuple(sum(shape) / prod(shape) for shape in shapes)


PROFILES: Mapping[str, Profile] = {"uniform": uniform, "erk": erk, "as-dense": as_dense}


def profile(name: str) -> Profile:
    """Returns the profile of a distribution.

    Raises:
        UserError: The distribution is unknown.
    """
    if name in PROFILES:
        return PROFILES[name]
    raise UserError(f"distribution {name!r} is unknown; choose one of {', '.join(sorted(PROFILES))}")


def spread(shares: Sequence[float], weights: Sequence[float], total: float) -> tuple[float, ...]:
    """Returns densities min(1, ε·share) with Σ weight·density = total.

    Args:
        shares: Positive profile values, one a layer.
        weights: What one unit of density costs, one a layer.
        total: What is to be spent, in units of `weights`.

    Raises:
        BudgetError: `total` is not positive, or more than full density costs.
    """
    full = sum(weights)
    if total <= 0:
        raise BudgetError("nothing is left for the masked layers: their density would be 0 or less")
    if total > full * (1 + 1e-12):
        raise BudgetError("the masked layers would need a density above 1 to use up the budget")
    order = sorted(range(len(shares)), key=lambda index: -shares[index])
    left, rest = total, sum(share * weight for share, weight in zip(shares, weights, strict=True))
    scale = 0.0
    for index in order:
        scale = left / rest
        if scale * shares[index] <= 1:
            break
        left -= weights[index]
        rest -= shares[index] * weights[index]
        if rest <= 0:
            break
    return tuple(min(1.0, scale * share) for share in shares)
