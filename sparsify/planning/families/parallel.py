"""Sparse Parallel: Σ_{j=1..n} σ(θ_jᵀx), every θ_j of the dense layer's shape at density 1/n.

The papers give n = 1/(1−s); for any s it is the nearest whole number, at least 2, and the branches together
keep exactly as many weights as the dense layer has.
"""

from __future__ import annotations

from sparsify.pattern_rules import PatternRule
from sparsify.planning.families.shape import Amount, DenseShape
from sparsify.planning.schema import PlanTensor


def branch_count(density: float) -> int:
    """n = max(2, round(1/ρ))."""
    return max(2, round(1 / density))


def branches_of(amount: Amount) -> int:
    """The number of branches asked for, or the one that follows from the density."""
    return amount.count if amount.count is not None else branch_count(amount.density or 1.0)


def parts(root: str, dense: DenseShape, amount: Amount, rule: PatternRule) -> tuple[PlanTensor, ...]:
    """The branches of one layer.

    Args:
        root: Path of the container in the rewritten model.
        dense: Shape of the layer.
        amount: Density of the branches together, their number, or both.
        rule: The pattern of the masks.

    Returns:
        One tensor a branch; counts differ by one unit of the pattern at most.
    """
    branches = branches_of(amount)
    both = amount.count is not None and amount.density is not None
    kept = round((amount.density or 1.0) * branches * dense.size) if both else dense.size
    unit = rule.unit(dense.dims)
    if unit == 0:
        counts = [rule.count(dense.dims, kept / (branches * dense.size))] * branches
    else:
        each, more = divmod(round(kept / unit), branches)
        counts = [unit * (each + (j < more)) for j in range(branches)]
    return tuple(
        PlanTensor(f"{root}.branches.{j}.weight", "branch", dense.dims, nnz, True)
        for j, nnz in enumerate(counts)
    )
