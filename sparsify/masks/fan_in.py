"""Constant fan-in: every output that is alive reads the same number of inputs.

A row without an active entry is an ablated neuron, which the pattern allows (Lasby et al., ICLR 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.masks.matrix import from_matrix, to_matrix
from sparsify.masks.pattern import Pattern, fitting
from sparsify.masks.rows import random_rows, topk_rows
from sparsify.pattern_rules import FanInRule


class FanIn(FanInRule, Pattern):
    """Every output that is alive reads the same number of inputs."""

    def mask_from_scores(self, scores: Tensor, nnz: int) -> Tensor:
        """See `Pattern.mask_from_scores`: the largest of every row.

        Rows whose scores are all `-inf` stay empty, and the others share the count among them.
        """
        fitting(self, scores.shape)
        matrix = to_matrix(scores)
        alive = matrix.amax(1) != -torch.inf
        if not alive.any():
            alive = torch.ones_like(alive)
        mask = topk_rows(matrix, self._fan_in(nnz, scores.shape, int(alive.sum())))
        return from_matrix(mask & alive[:, None], scores.shape)

    def random(self, shape: Sequence[int], nnz: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Pattern.random`: no row is empty."""
        fitting(self, shape)
        rows = shape[0]
        columns = torch.Size(shape[1:]).numel()
        mask = random_rows(rows, columns, self._fan_in(nnz, shape, rows), generator)
        return from_matrix(mask, shape)

    def matches(self, mask: Tensor) -> Tensor:
        """See `Pattern.matches`: per row, whether it is empty or has what most rows have."""
        counts = to_matrix(mask).sum(1, dtype=torch.int32)
        return (counts == 0) | (counts == usual(counts))

    def _place(self, mask: Tensor, place: tuple[int, ...]) -> str:
        counts = to_matrix(mask).sum(1, dtype=torch.int32)
        return f"row {place[0]} has {int(counts[place[0]])} active inputs, others have {usual(counts)}"

    def _fan_in(self, nnz: int, shape: Sequence[int], rows: int) -> int:
        columns = torch.Size(shape[1:]).numel()
        if nnz % rows or not 0 <= nnz // rows <= columns:
            why = f"{rows} rows have as many each, 0 to {columns}"
            raise self._impossible(nnz, shape, why)
        return nnz // rows


def usual(counts: Tensor) -> int:
    """The commonest count of the rows that are not empty, the smallest of those; 0 where all are empty."""
    counts = counts[counts > 0]
    return int(counts.mode().values) if counts.numel() else 0
