"""Sparse Factorized: Vᵀσ(Uᵀx), U of Din × r and V of r × Dout, both masked, or U only.

Both masked to ρ: r = ceil(Din·Dout / ((Din + Dout)·ρ)). U only, V dense: r = ceil(Din·Dout / (ρ·Din + Dout)).
In a convolution U carries the kernel (Din·k² stands for Din) and V is 1×1; groups factorize each by itself.
The kept weights of U and V together are exactly as many as the dense layer has.
"""

from __future__ import annotations

from math import ceil, prod

from sparsify.planning.families.shape import Amount, DenseShape
from sparsify.planning.schema import PlanTensor


def rank_for(dense: DenseShape, density: float, *, first_only: bool = False) -> int:
    """Rank at which U and V at `density` have the dense layer's FLOPs, over all groups.

    With a dense V one unit of rank is a large step: where rounding up would leave U less than half of its
    density, the rank is rounded down.
    """
    fan_in, fan_out = dense.fan_in, dense.fan_out
    each = fan_in * density + fan_out if first_only else (fan_in + fan_out) * density
    rank = ceil(fan_in * fan_out / each)
    left = fan_out * (fan_in - rank) / (rank * fan_in)
    return dense.groups * (rank - 1 if first_only and left < density / 2 and rank > 1 else rank)


def rank_at_width(dense: DenseShape, width: float) -> int:
    """Rank at `width` times that of a dense factorization of the same FLOPs, over all groups."""
    return dense.groups * max(1, round(width * dense.rank_at_equal_flops))


def parts(
    root: str, dense: DenseShape, amount: Amount, *, first_only: bool = False
) -> tuple[PlanTensor, ...]:
    """U and V of one layer.

    Args:
        root: Path of the container in the rewritten model.
        dense: Shape of the layer.
        amount: Density of the masked factors together, the rank, or both.
        first_only: Leave V dense.

    Returns:
        U and V. Where the counts asked for are infeasible a tensor has no kept weight, or less.
    """
    rank = amount.count
    if rank is None:
        rank = rank_for(dense, amount.density or 1.0, first_only=first_only)
    u, v = dense.first_factor(rank), dense.second_factor(rank)
    masked = prod(u) if first_only else prod(u) + prod(v)
    kept = dense.size - (prod(v) if first_only else 0)
    if amount.count is not None and amount.density is not None:
        kept = round(amount.density * masked)
    in_u = kept if first_only else round(kept * prod(u) / masked)
    return (
        PlanTensor(f"{root}.u.weight", "u", u, in_u, True),
        PlanTensor(f"{root}.v.weight", "v", v, prod(v) if first_only else kept - in_u, not first_only),
    )
