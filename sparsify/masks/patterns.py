"""What a mask may look like. A new pattern is one class and one row of `_PATTERNS`."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sparsify.errors import SparsifyError, UserError
from sparsify.masks.exact import count, random_mask, topk_mask


class Pattern(ABC):
    """A family of masks: how they are made, checked, and how fine their density can be set.

    Attributes:
        name: The text that `parse_pattern` reads.
    """

    name: ClassVar[str]

    @abstractmethod
    def mask_from_scores(self, scores: Tensor, density: float) -> Tensor:
        """Mask of this pattern that keeps the largest scores.

        Args:
            scores: Of the weight's shape, outputs first.
            density: Kept share, in (0, 1].

        Returns:
            Bool tensor of the same shape with an exact count of active entries.
        """

    @abstractmethod
    def random(
        self, shape: Sequence[int], density: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """Random mask of this pattern with the same exact count."""

    @abstractmethod
    def check(self, mask: Tensor) -> None:
        """Raises SparsifyError when a mask is not of this pattern."""

    @abstractmethod
    def step(self, shape: Sequence[int]) -> float:
        """Smallest difference between two densities that this pattern can make at this shape."""


class Unstructured(Pattern):
    """Any entry may be active."""

    name: ClassVar[str] = "unstructured"

    def mask_from_scores(self, scores: Tensor, density: float) -> Tensor:
        """See `Pattern.mask_from_scores`; the count is density · numel, rounded half to even."""
        return topk_mask(scores, count(scores.numel(), density))

    def random(
        self, shape: Sequence[int], density: float, generator: torch.Generator | None = None
    ) -> Tensor:
        """See `Pattern.random`."""
        return random_mask(shape, count(math.prod(shape), density), generator)

    def check(self, mask: Tensor) -> None:
        """See `Pattern.check`: every bool tensor will do."""
        if mask.dtype != torch.bool:
            raise SparsifyError(f"a mask must be a bool tensor, got {mask.dtype}")

    def step(self, shape: Sequence[int]) -> float:
        """See `Pattern.step`: one entry."""
        return 1.0 / math.prod(shape)


def _unavailable(text: str) -> Pattern:
    raise UserError(f"pattern '{text}' is not available in this version; use 'unstructured'")


_PATTERNS: tuple[tuple[re.Pattern[str], Callable[[str], Pattern]], ...] = (
    (re.compile(r"unstructured"), lambda text: Unstructured()),
    (re.compile(r"fan-in"), _unavailable),
    (re.compile(r"\d+:\d+"), _unavailable),
    (re.compile(r"\d+x\d+"), _unavailable),
)


def parse_pattern(text: str) -> Pattern:
    """Reads a pattern's name: `unstructured`, `fan-in`, `N:M` or `RxC`.

    Raises:
        UserError: When the name is unknown, or this version does not have the pattern.
    """
    for expression, make in _PATTERNS:
        if expression.fullmatch(text):
            return make(text)
    raise UserError(f"unknown pattern '{text}'; known are unstructured, fan-in, N:M (2:4), RxC (4x1)")
