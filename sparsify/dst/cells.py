"""A weight as the update of its topology sees it: cells of units.

A unit comes and goes as a whole: one weight, or a block. A cell has a count of its own: the whole weight
(unstructured, blocks), one row (fan-in), m inputs side by side (n:m). So one update serves every pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from sparsify.masks import NM, Blocks, FanIn, Pattern, from_matrix, to_matrix


@dataclass(frozen=True)
class Cells:
    """The view of one weight.

    Attributes:
        pattern: What its mask looks like.
        shape: Shape of the weight, outputs first.
    """

    pattern: Pattern
    shape: tuple[int, ...]

    @property
    def unit(self) -> int:
        """Weights of a unit."""
        return self.pattern.r * self.pattern.c if isinstance(self.pattern, Blocks) else 1

    @property
    def size(self) -> tuple[int, int]:
        """Number of cells, and units in each."""
        units = prod(self.shape) // self.unit
        if isinstance(self.pattern, FanIn):
            return self.shape[0], units // self.shape[0]
        if isinstance(self.pattern, NM):
            return units // self.pattern.m, self.pattern.m
        return 1, units

    @property
    def fixed(self) -> bool:
        """Whether the pattern leaves no choice of the count."""
        return isinstance(self.pattern, NM)

    def fold(self, tensor: Tensor) -> Tensor:
        """Turns a tensor of the weight's shape into one of (cells, units); a block is summed.

        Low precision is widened to float32, as sums and selections need it.
        """
        wide = tensor.float() if tensor.dtype.itemsize < 4 and tensor.dtype != torch.bool else tensor
        if isinstance(self.pattern, Blocks):
            return self.pattern.sums(wide).reshape(1, -1)
        if isinstance(self.pattern, FanIn):
            return to_matrix(wide)
        if isinstance(self.pattern, NM):
            return to_matrix(wide).reshape(-1, self.pattern.m)
        return wide.reshape(1, -1)

    def fold_mask(self, mask: Tensor) -> Tensor:
        """Turns a mask of the weight's shape into one of (cells, units): which units are active."""
        return self.fold(mask) > 0 if isinstance(self.pattern, Blocks) else self.fold(mask)

    def unfold(self, mask: Tensor) -> Tensor:
        """Turns a mask of (cells, units) into one of the weight's shape."""
        if isinstance(self.pattern, Blocks):
            tiles = mask.reshape(self.shape[0] // self.pattern.r, -1)
            spread = tiles.repeat_interleave(self.pattern.r, 0).repeat_interleave(self.pattern.c, 1)
            return from_matrix(spread, self.shape)
        if isinstance(self.pattern, FanIn | NM):
            return from_matrix(mask, self.shape)
        return mask.reshape(self.shape)
