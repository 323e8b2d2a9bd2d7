"""Unstructured masks: any entry may be active."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.masks.exact import random_mask, topk_mask
from sparsify.masks.pattern import Pattern
from sparsify.pattern_rules import UnstructuredRule


class Unstructured(UnstructuredRule, Pattern):
    """Any entry may be active."""

    def mask_from_scores(self, scores: Tensor, nnz: int) -> Tensor:
        """See `Pattern.mask_from_scores`: the largest scores of all."""
        return topk_mask(scores, nnz)

    def random(self, shape: Sequence[int], nnz: int, generator: torch.Generator | None = None) -> Tensor:
        """See `Pattern.random`."""
        return random_mask(shape, nnz, generator)

    def matches(self, mask: Tensor) -> Tensor:
        """See `Pattern.matches`: one True, since every mask will do."""
        return torch.ones(1, dtype=torch.bool, device=mask.device)
