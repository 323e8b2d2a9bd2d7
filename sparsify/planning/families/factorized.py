"""Sparse Factorized: Vᵀσ(Uᵀx), U of Din × r and V of r × Dout, both masked, or U only.

Both masked to ρ: r = ceil(Din·Dout / ((Din + Dout)·ρ)). U only, V dense: r = ceil(Din·Dout / (ρ·Din + Dout)).
In a convolution U carries the kernel (Din·k² stands for Din) and V is 1×1; groups factorize each by itself.
The kept weights of U and V together are exactly as many as the dense layer has.
"""

from __future__ import annotations

from math import ceil, lcm, prod

from sparsify.pattern_rules import PatternRule
from sparsify.planning.families.shape import Amount, DenseShape
from sparsify.planning.schema import PlanTensor

_REPEATS = 10


def rank_for(dense: DenseShape, density: float, rule: PatternRule, *, first_only: bool = False) -> int:
    """Rank at which U and V at `density` have the dense layer's FLOPs, over all groups.

    It is a whole number of the pattern's blocks. Rounded up, since the density can then be lowered; to the
    nearest where the pattern fixes the density. With a dense V one unit of rank is a large step: where
    rounding up would leave U less than half of its density, the rank is rounded down.
    """
    fan_in, fan_out = dense.fan_in, dense.fan_out
    each = fan_in * density + fan_out if first_only else (fan_in + fan_out) * density
    block = rank_block(rule, first_only=first_only)
    wanted = fan_in * fan_out / (each * block)
    if rule.density is not None:
        return dense.groups * block * max(1, round(wanted))
    rank = block * ceil(wanted)
    left = fan_out * (fan_in - rank) / (rank * fan_in)
    return dense.groups * (rank - block if first_only and left < density / 2 and rank > block else rank)


def rank_at_width(dense: DenseShape, width: float, block: int = 1) -> int:
    """Rank at `width` times that of a dense factorization of the same FLOPs, over all groups."""
    return dense.groups * block * max(1, round(width * dense.rank_at_equal_flops / block))


def rank_block(rule: PatternRule, *, first_only: bool = False) -> int:
    """What the rank of a group must be a multiple of: it is the outputs of U and the inputs of V."""
    outputs, inputs = rule.multiples
    return outputs if first_only else lcm(outputs, inputs)


def parts(
    root: str, dense: DenseShape, amount: Amount, rule: PatternRule, *, first_only: bool = False
) -> tuple[PlanTensor, ...]:
    """U and V of one layer.

    Args:
        root: Path of the container in the rewritten model.
        dense: Shape of the layer.
        amount: Density of the masked factors together, the rank, or both.
        rule: The pattern of the masks.
        first_only: Leave V dense.

    Returns:
        U and V. Where the counts asked for are infeasible a tensor has no kept weight, or less.
    """
    rank = amount.count
    if rank is None:
        rank = rank_for(dense, amount.density or 1.0, rule, first_only=first_only)
    u, v = dense.first_factor(rank), dense.second_factor(rank)
    masked = prod(u) if first_only else prod(u) + prod(v)
    kept = dense.size - (prod(v) if first_only else 0)
    if amount.count is not None and amount.density is not None:
        kept = round(amount.density * masked)
    in_u, in_v = _shared(u, v, kept, rule, first_only=first_only)
    return (
        PlanTensor(f"{root}.u.weight", "u", u, in_u, True),
        PlanTensor(f"{root}.v.weight", "v", v, in_v, not first_only),
    )


def _shared(
    u: tuple[int, ...], v: tuple[int, ...], kept: int, rule: PatternRule, *, first_only: bool
) -> tuple[int, int]:
    """Counts of U and V near the ones proportional to their sizes, in units of the pattern.

    Rounding is repeated on what it made of the total, so that a total once made stays as it is.
    """
    of_u, of_v = rule.unit(u), rule.unit(v)
    if 0 in (of_u, of_v):
        return rule.count(u, 1.0), prod(v) if first_only else rule.count(v, 1.0)
    if first_only:
        return of_u * round(kept / of_u), prod(v)
    for _ in range(_REPEATS):
        in_u = of_u * round(kept * prod(u) / ((prod(u) + prod(v)) * of_u))
        in_v = of_v * round((kept - in_u) / of_v)
        if in_u + in_v == kept:
            break
        kept = in_u + in_v
    return in_u, in_v
