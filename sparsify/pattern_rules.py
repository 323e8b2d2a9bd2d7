"""The arithmetic of patterns: which shapes can have one, and how many weights it keeps. No tensors here.

A weight (outputs, inputs, *kernel) is seen as a matrix: one row an output, the inputs of one kernel position
side by side. `masks.patterns` adds the masks themselves.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from sparsify.errors import UserError


def count(numel: int, density: float) -> int:
    """Number of active entries that a density means, rounded half to even, at least 1.

    Args:
        numel: Entries in all, at least 1.
        density: Kept share, in (0, 1].

    Raises:
        UserError: When the density is outside (0, 1].
    """
    if not 0.0 < density <= 1.0:
        raise UserError(f"density must lie in (0, 1], got {density}")
    return min(numel, max(1, round(density * numel)))


class PatternRule(ABC):
    """What a pattern allows."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The text that `parse_rule` reads."""

    @property
    def density(self) -> float | None:
        """The only density that the pattern can have, or None where it can be chosen."""
        return None

    @property
    def multiples(self) -> tuple[int, int]:
        """What outputs (of one convolution group) and inputs must be multiples of."""
        return (1, 1)

    @abstractmethod
    def unit(self, shape: Sequence[int]) -> int:
        """Entries that come and go together; 0 where the count is fixed.

        Args:
            shape: Shape of the weight, outputs first.
        """

    def step(self, shape: Sequence[int]) -> float:
        """Smallest difference between two densities at this shape; 0 where the density is fixed."""
        return self.unit(shape) / prod(shape)

    def count(self, shape: Sequence[int], density: float) -> int:
        """The count nearest to `density` · numel that the pattern can have, at least one unit.

        Raises:
            UserError: When the density is outside (0, 1].
        """
        unit = self.unit(shape)
        return unit * count(prod(shape) // unit, density)

    def initial_count(self, shape: Sequence[int], nnz: int, density: float) -> int:
        """The count of a mask that starts at `density` and ends at `nnz`, if that is less."""
        return max(nnz, self.count(shape, density))

    def refusal(self, shape: Sequence[int], groups: int = 1) -> str | None:
        """Why a weight of this shape cannot have the pattern, or None.

        Args:
            shape: Shape of the weight, outputs first.
            groups: Convolution groups.
        """
        rows, columns = self.multiples
        if len(shape) < 2:
            return f"a tensor of {len(shape)} dimensions has no inputs and outputs"
        if (shape[0] // groups) % rows:
            inside = " of each convolution group" if groups > 1 else ""
            return f"{shape[0] // groups} outputs{inside} are no multiple of {rows}"
        if shape[1] % columns:
            inside = " of each convolution group" if groups > 1 else ""
            return f"{shape[1]} inputs{inside} are no multiple of {columns}"
        return None


@dataclass(frozen=True)
class UnstructuredRule(PatternRule):
    """Any entry may be active."""

    @property
    def name(self) -> str:
        """See `PatternRule.name`."""
        return "unstructured"

    def unit(self, shape: Sequence[int]) -> int:
        """One entry."""
        return 1


UNSTRUCTURED = UnstructuredRule()


@dataclass(frozen=True)
class FanInRule(PatternRule):
    """Every output that is alive reads the same number of inputs."""

    @property
    def name(self) -> str:
        """See `PatternRule.name`."""
        return "fan-in"

    def unit(self, shape: Sequence[int]) -> int:
        """One entry in every row."""
        return shape[0]


@dataclass(frozen=True)
class NMRule(PatternRule):
    """Of every m inputs side by side exactly n are active.

    Attributes:
        n: Active entries of a group.
        m: Entries of a group.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise UserError(
                f"pattern '{self.n}:{self.m}': the first number must be at least 1 and below the second"
            )

    @property
    def name(self) -> str:
        """See `PatternRule.name`."""
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """Always n / m."""
        return self.n / self.m

    @property
    def multiples(self) -> tuple[int, int]:
        """Groups lie within the inputs of one kernel position."""
        return (1, self.m)

    def unit(self, shape: Sequence[int]) -> int:
        """The count cannot change."""
        return 0

    def count(self, shape: Sequence[int], density: float | None = None) -> int:
        """numel · n / m, whatever the density asked for."""
        return prod(shape) // self.m * self.n

    def initial_count(self, shape: Sequence[int], nnz: int, density: float) -> int:
        """See `PatternRule.initial_count`: of every group more than n entries."""
        return prod(shape) // self.m * max(self.n, round(density * self.m))


@dataclass(frozen=True)
class BlocksRule(PatternRule):
    """Tiles of r outputs × c inputs are active as a whole or not at all.

    Attributes:
        r: Outputs of a tile.
        c: Inputs of a tile.
    """

    r: int
    c: int

    def __post_init__(self) -> None:
        if self.r < 1 or self.c < 1:
            raise UserError(f"pattern '{self.r}x{self.c}': a block has at least one output and one input")

    @property
    def name(self) -> str:
        """See `PatternRule.name`."""
        return f"{self.r}x{self.c}"

    @property
    def multiples(self) -> tuple[int, int]:
        """Tiles straddle neither convolution groups nor kernel positions."""
        return (self.r, self.c)

    def unit(self, shape: Sequence[int]) -> int:
        """One tile."""
        return self.r * self.c


def _pair(make: Callable[[int, int], PatternRule], separator: str) -> Callable[[str], PatternRule]:
    def read(text: str) -> PatternRule:
        first, _, second = text.partition(separator)
        return make(int(first), int(second))

    return read


_RULES: tuple[tuple[re.Pattern[str], Callable[[str], PatternRule]], ...] = (
    (re.compile(r"unstructured"), lambda text: UnstructuredRule()),
    (re.compile(r"fan-in"), lambda text: FanInRule()),
    (re.compile(r"\d{1,6}:\d{1,6}"), _pair(NMRule, ":")),
    (re.compile(r"\d{1,6}x\d{1,6}"), _pair(BlocksRule, "x")),
)


def parse_rule(text: str) -> PatternRule:
    """Reads a pattern's name: `unstructured`, `fan-in`, `N:M` (2:4) or `RxC` (4x1: 4 outputs, 1 input).

    Raises:
        UserError: When the name is unknown, or its numbers make no pattern.
    """
    for expression, make in _RULES:
        if expression.fullmatch(text):
            return make(text)
    raise UserError(f"unknown pattern '{text}'; known are unstructured, fan-in, N:M (2:4), RxC (4x1)")
