"""n:m masks: of every m input channels side by side exactly n are active."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sparsify.masks.matrix import column, from_matrix, to_matrix
from sparsify.masks.pattern import Pattern, fitting
from sparsify.masks.rows import random_rows, topk_rows
from sparsify.masks.unstructured import Unstructured
from sparsify.pattern_rules import NMRule


class NM(NMRule, Pattern):
    """Of every m inputs side by side exactly n are active.

    `mask_from_scores` and `random` also take counts of another q : m with the same groups, which gradual
    pruning passes through; `check` and `matches` accept n : m alone.
    """

    def mask_from_scores(self, scores: Tensor, nnz: int) -> Tensor:
        """See `Pattern.mask_from_scores`: the largest of every group."""
        fitting(self, scores.shape)
        kept = self._kept(nnz, scores.shape)
        mask = topk_rows(to_matrix(scores).reshape(-1, self.m), kept)
        return from_matrix(mask.reshape(scores.shape[0], -1), scores.shape)

    def random(self, shape: Sequence[int], nnz: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Pattern.random`."""
        fitting(self, shape)
        mask = random_rows(prod(shape) // self.m, self.m, self._kept(nnz, shape), generator)
        return from_matrix(mask.reshape(shape[0], -1), shape)

    def matches(self, mask: Tensor) -> Tensor:
        """See `Pattern.matches`: (outputs, groups of a row)."""
        return self._counts(mask) == self.n

    def present(self, mask: Tensor) -> Pattern:
        """See `Pattern.present`: q : m while as many as q are active in the mean group."""
        kept, rest = divmod(int(mask.sum()), max(1, mask.numel() // self.m))
        if rest or not self.n < kept <= self.m:
            return self
        return NM(kept, self.m) if kept < self.m else Unstructured()

    def _counts(self, mask: Tensor) -> Tensor:
        return to_matrix(mask).reshape(mask.shape[0], -1, self.m).sum(2, dtype=torch.int32)

    def _place(self, mask: Tensor, place: tuple[int, ...]) -> str:
        row, group = place
        active = int(to_matrix(mask)[row, group * self.m : (group + 1) * self.m].sum())
        where = column(group * self.m, mask.shape)
        return f"row {row} has {active} of the {self.m} entries from {where}"

    def _kept(self, nnz: int, shape: Sequence[int]) -> int:
        groups = prod(shape) // self.m
        if nnz % groups or not 0 <= nnz // groups <= self.m:
            raise self._impossible(nnz, shape, f"{groups} groups have as many each, 0 to {self.m}")
        return nnz // groups
