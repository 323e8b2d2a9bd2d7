"""Block masks: tiles of r outputs × c inputs, active as a whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sparsify.masks.exact import random_mask, topk_mask
from sparsify.masks.matrix import column, from_matrix, to_matrix
from sparsify.masks.pattern import Pattern, fitting
from sparsify.pattern_rules import BlocksRule


class Blocks(BlocksRule, Pattern):
    """Tiles of r outputs × c inputs are active as a whole or not at all."""

    def mask_from_scores(self, scores: Tensor, nnz: int) -> Tensor:
        """See `Pattern.mask_from_scores`: the tiles with the largest sums."""
        fitting(self, scores.shape)
        tiles = self._tiles(nnz, scores.shape)
        sums = self.sums(scores)
        return from_matrix(self._expanded(topk_mask(sums, tiles)), scores.shape)

    def random(self, shape: Sequence[int], nnz: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Pattern.random`."""
        fitting(self, shape)
        tiles = self._tiles(nnz, shape)
        grid = (shape[0] // self.r, prod(shape[1:]) // self.c)
        return from_matrix(self._expanded(random_mask(grid, tiles, generator)), shape)

    def matches(self, mask: Tensor) -> Tensor:
        """See `Pattern.matches`: (outputs / r, columns / c), in the order of the matrix."""
        tiled = self._tiled(mask)
        return tiled.all(3).all(1) == tiled.any(3).any(1)

    def sums(self, scores: Tensor) -> Tensor:
        """Sum of the scores of every tile: (outputs / r, columns / c)."""
        values = scores.detach()
        if not values.dtype.is_floating_point or values.dtype.itemsize < 4:
            values = values.float()
        return self._tiled(values).sum((1, 3))

    def _tiled(self, tensor: Tensor) -> Tensor:
        matrix = to_matrix(tensor)
        return matrix.reshape(matrix.shape[0] // self.r, self.r, -1, self.c)

    def _expanded(self, tiles: Tensor) -> Tensor:
        rows, columns = tiles.shape
        spread = tiles[:, None, :, None].expand(rows, self.r, columns, self.c)
        return spread.reshape(rows * self.r, columns * self.c)

    def _place(self, mask: Tensor, place: tuple[int, ...]) -> str:
        row, tile = place
        active = int(self._tiled(mask)[row, :, tile].sum())
        where = column(tile * self.c, mask.shape)
        return f"the block from output {row * self.r}, {where} has {active} of {self.r * self.c} active"

    def _tiles(self, nnz: int, shape: Sequence[int]) -> int:
        size = self.r * self.c
        if nnz % size or not 0 <= nnz <= prod(shape):
            raise self._impossible(nnz, shape, f"it comes in blocks of {size}, at most {prod(shape)} in all")
        return nnz // size
