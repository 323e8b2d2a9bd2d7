"""What every pattern of masks can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparsify.errors import SparsifyError
from sparsify.pattern_rules import PatternRule

_SHOWN = 3


class Pattern(PatternRule):
    """A family of masks: how they are made and checked, besides the arithmetic of its rule."""

    @abstractmethod
    def mask_from_scores(self, scores: Tensor, nnz: int) -> Tensor:
        """The mask of this pattern with exactly `nnz` entries whose scores have the largest sum.

        Args:
            scores: Of the weight's shape, outputs first, any real dtype; `-inf` marks what should go last.
            nnz: Active entries, a count that the pattern can have (see `count`).

        Returns:
            Bool tensor of the same shape. Equal scores are settled by position, the lower index first.

        Raises:
            SparsifyError: When a score is NaN, or the pattern cannot have this count at this shape.
        """

    @abstractmethod
    def random(self, shape: Sequence[int], nnz: int, generator: torch.Generator | None = None) -> Tensor:
        """A random mask with exactly `nnz` entries, every one of this pattern equally likely.

        Args:
            shape: Shape of the weight, outputs first.
            nnz: Active entries, a count that the pattern can have (see `count`).
            generator: Source of randomness; the mask lives on its device.

        Raises:
            SparsifyError: When the pattern cannot have this count at this shape.
        """

    @abstractmethod
    def matches(self, mask: Tensor) -> Tensor:
        """Where a mask keeps to the pattern: one bool a row, group or block of the weight's matrix."""

    def present(self, mask: Tensor) -> Pattern:
        """The pattern that a mask with this count has on its way to this one, as gradual pruning goes it."""
        return self

    def check(self, mask: Tensor) -> None:
        """Checks that a mask is of this pattern.

        Raises:
            SparsifyError: When it is not, with the first places where.
        """
        if mask.dtype != torch.bool:
            raise SparsifyError(f"a mask must be a bool tensor, got {mask.dtype}")
        reason = self.refusal(mask.shape)
        if reason is not None:
            raise SparsifyError(f"a mask of shape {tuple(mask.shape)} cannot be {self.name}: {reason}")
        wrong = (~self.matches(mask)).nonzero()
        if len(wrong):
            places = [self._place(mask, tuple(place)) for place in wrong[:_SHOWN].tolist()]
            more = f" and {len(wrong) - _SHOWN} more places" if len(wrong) > _SHOWN else ""
            raise SparsifyError(f"the mask is not {self.name}: {'; '.join(places)}{more}")

    def _place(self, mask: Tensor, place: tuple[int, ...]) -> str:
        """Says what is wrong at one place that `matches` denies."""
        return f"at {place}"

    def _impossible(self, nnz: int, shape: Iterable[int], why: str) -> SparsifyError:
        return SparsifyError(f"a {self.name} mask of shape {tuple(shape)} cannot have {nnz} entries: {why}")


def fitting(pattern: Pattern, shape: Sequence[int]) -> None:
    """Raises SparsifyError when a weight of this shape cannot have the pattern."""
    reason = pattern.refusal(shape)
    if reason is not None:
        raise SparsifyError(f"a weight of shape {tuple(shape)} cannot be {pattern.name}: {reason}")
