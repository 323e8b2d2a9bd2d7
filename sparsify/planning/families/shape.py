"""A dense weight's shape in the words of the families' formulas."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class DenseShape:
    """Shape of a linear or convolution weight: (Dout, Din / groups, *kernel).

    Attributes:
        dims: The extents.
        groups: Convolution groups; 1 for a linear layer.
    """

    dims: tuple[int, ...]
    groups: int = 1

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.dims)

    @property
    def fan_in(self) -> int:
        """Inputs of one output: Din, or Din·k² of a convolution, in its own group."""
        return prod(self.dims[1:])

    @property
    def fan_out(self) -> int:
        """Outputs of one group."""
        return self.dims[0] // self.groups

    @property
    def rank_at_equal_flops(self) -> float:
        """Inner width of a dense factorization with as many weights: Din·Dout / (Din + Dout) a group."""
        return self.fan_in * self.fan_out / (self.fan_in + self.fan_out)

    def first_factor(self, rank: int) -> tuple[int, ...]:
        """Shape of U, which carries the kernel: (rank, Din / groups, *kernel)."""
        return (rank, *self.dims[1:])

    def second_factor(self, rank: int) -> tuple[int, ...]:
        """Shape of V, a linear layer or a convolution of kernel 1: (Dout, rank / groups, 1, …)."""
        return (self.dims[0], rank // self.groups, *(1 for _ in self.dims[2:]))


@dataclass(frozen=True)
class Amount:
    """How much of a family a layer gets; None follows from the other, at the FLOPs of the dense layer.

    Attributes:
        density: Kept share of the masked tensors.
        count: Branches of a parallel layer, rank of a factorized or doped one.
    """

    density: float | None = None
    count: int | None = None
