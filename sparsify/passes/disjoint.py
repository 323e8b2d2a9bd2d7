"""Masks of linear branches: disjoint, so that together they are one matrix at their summed density."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparsify.masks import Pattern, Unstructured, random_mask
from sparsify.passes.randomness import generator
from sparsify.planning.schema import PlanTensor

_CPU = torch.device("cpu")


def disjoint_masks(tensors: Sequence[PlanTensor], seed: int, pattern: Pattern) -> Iterator[Tensor]:
    """Draws one mask after the other, each from the entries that the ones before left free.

    Once none is free, entries are taken for a second time, again no sooner than all others were.

    Args:
        tensors: The branches, all of one shape.
        seed: Seed of the rewrite.
        pattern: The pattern of every mask.

    Yields:
        A bool tensor with exactly `nnz` entries set, for every branch in order.
    """
    if not isinstance(pattern, Unstructured):
        yield from _of_pattern(tensors, seed, pattern)
        return
    shape = tensors[0].shape
    free = torch.ones(shape, dtype=torch.bool)
    for tensor in tensors:
        source = generator(seed, "mask", tensor.fqn, _CPU)
        mask = torch.zeros(shape, dtype=torch.bool)
        left = int(torch.count_nonzero(free))
        if tensor.nnz > left:
            mask |= free
            free = ~mask
        missing = tensor.nnz - int(torch.count_nonzero(mask))
        mask[free] |= random_mask((int(torch.count_nonzero(free)),), missing, source)
        free &= ~mask
        yield mask


def _of_pattern(tensors: Sequence[PlanTensor], seed: int, pattern: Pattern) -> Iterator[Tensor]:
    """The same row by row, group by group or tile by tile: what was taken least often goes first."""
    taken = torch.zeros(tensors[0].shape)
    for tensor in tensors:
        source = generator(seed, "mask", tensor.fqn, _CPU)
        mask = pattern.mask_from_scores(torch.rand(tensor.shape, generator=source) - taken, tensor.nnz)
        taken += mask
        yield mask
