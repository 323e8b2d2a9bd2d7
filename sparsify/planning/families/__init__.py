"""What one layer becomes in each family: pure functions from the dense weight's shape to tensors.

A new family is one file with a `parts` function and a row in `build`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from sparsify.pattern_rules import UNSTRUCTURED, PatternRule
from sparsify.planning.families import doped, factorized, parallel
from sparsify.planning.families.shape import Amount, DenseShape
from sparsify.planning.schema import PlanTensor

__all__ = ["DROP_IN", "Amount", "DenseShape", "Parts", "build", "dense", "masked"]

DROP_IN = ("parallel", "factorized", "doped")
"""Families that keep every width and replace a layer by several."""


@dataclass(frozen=True)
class Parts:
    """What a weight becomes.

    Attributes:
        family: The family.
        tensors: Its tensors.
        nonlinearity: As `PlanLayer.nonlinearity`.
        reason: Why, in words; empty where the plan's refusal says it.
    """

    family: str
    tensors: tuple[PlanTensor, ...]
    nonlinearity: str = "none"
    reason: str = ""

    @property
    def kept(self) -> int:
        """Number of kept weights."""
        return sum(tensor.nnz for tensor in self.tensors)

    @property
    def density(self) -> float:
        """Kept share of the masked tensors; of all where none is masked."""
        counted = [tensor for tensor in self.tensors if tensor.masked] or self.tensors
        return sum(tensor.nnz for tensor in counted) / sum(prod(tensor.shape) for tensor in counted)

    @property
    def branches(self) -> int:
        """Number of parallel branches."""
        return max(1, sum(tensor.part == "branch" for tensor in self.tensors))

    @property
    def rank(self) -> int:
        """Inner width of U and V; 0 where there are none."""
        return next((tensor.shape[0] for tensor in self.tensors if tensor.part == "u"), 0)

    @property
    def problem(self) -> str | None:
        """Why the numbers cannot be met, or None."""
        if self.family in ("factorized", "doped") and self.rank < 1:
            return "its rank would be 0"
        for tensor in self.tensors:
            if tensor.nnz < 1:
                return f"no weight would be left in {tensor.fqn}"
            if tensor.nnz > prod(tensor.shape):
                return f"{tensor.fqn} would need a density above 1"
        return None


def dense(weight: str, shape: tuple[int, ...]) -> Parts:
    """A weight that stays as it is."""
    return Parts("dense", (PlanTensor(weight, "weight", shape, prod(shape), False),))


def masked(family: str, weight: str, shape: tuple[int, ...], kept: int, reason: str) -> Parts:
    """A weight with a mask."""
    return Parts(family, (PlanTensor(weight, "weight", shape, kept, True),), "none", reason)


def build(
    family: str,
    root: str,
    shape: DenseShape,
    amount: Amount,
    *,
    rule: PatternRule = UNSTRUCTURED,
    nonlinearity: str = "none",
    first_only: bool = False,
    reason: str = "",
) -> Parts:
    """What a layer becomes in a drop-in family; `problem` says whether the numbers can be met.

    Args:
        family: One of `DROP_IN`.
        root: Path of the container in the rewritten model.
        shape: Shape of the dense weight.
        amount: Density, branches or rank.
        rule: The pattern of the masks.
        nonlinearity: As `PlanLayer.nonlinearity`.
        first_only: Whether a factorized layer masks U only.
        reason: Why the layer becomes this.
    """
    if family == "parallel":
        tensors = parallel.parts(root, shape, amount, rule)
    elif family == "factorized":
        tensors = factorized.parts(root, shape, amount, rule, first_only=first_only)
    else:
        tensors = doped.parts(root, shape, amount, rule)
    return Parts(family, tensors, nonlinearity, reason)
