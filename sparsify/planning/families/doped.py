"""Sparse Doped: VᵀUᵀx + θᵀx, U and V dense of rank r = floor(s·Din·Dout / (Din + Dout)), θ masked.

The sparse part keeps exactly what is left: Din·Dout − r·(Din + Dout) weights, so it is really iso-FLOP,
unlike a doped layer whose U and V are masked too.
"""

from __future__ import annotations

from math import floor, prod

from sparsify.pattern_rules import PatternRule
from sparsify.planning.families.shape import Amount, DenseShape
from sparsify.planning.schema import PlanTensor


def rank_for(dense: DenseShape, density: float, rule: PatternRule) -> int:
    """Rank that spends what a masked part at `density` leaves, over all groups; it may be 0.

    Rounded down, since the density can then be raised; to the nearest where the pattern fixes the density.
    """
    wanted = (1 - density) * dense.rank_at_equal_flops
    return dense.groups * (floor(wanted + 1e-9) if rule.density is None else round(wanted))


def parts(root: str, dense: DenseShape, amount: Amount, rule: PatternRule) -> tuple[PlanTensor, ...]:
    """U, V and the sparse part of one layer.

    Args:
        root: Path of the container in the rewritten model.
        dense: Shape of the layer.
        amount: Density of the sparse part, the rank, or both.
        rule: The pattern of the sparse part, whose count is the nearest that it has.

    Returns:
        The three tensors. Where the amount is infeasible one of them has no kept weight, or less.
    """
    rank = amount.count if amount.count is not None else rank_for(dense, amount.density or 1.0, rule)
    u, v = dense.first_factor(rank), dense.second_factor(rank)
    kept = dense.size - prod(u) - prod(v)
    if amount.count is not None and amount.density is not None:
        kept = round(amount.density * dense.size)
    unit = rule.unit(dense.dims)
    kept = unit * round(kept / unit) if unit else rule.count(dense.dims, 1.0)
    return (
        PlanTensor(f"{root}.u.weight", "u", u, prod(u), False),
        PlanTensor(f"{root}.v.weight", "v", v, prod(v), False),
        PlanTensor(f"{root}.sparse.weight", "sparse", dense.dims, kept, True),
    )
