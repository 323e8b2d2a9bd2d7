"""Masks with the same exact count in every row of a matrix."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import SparsifyError

_PAIRWISE = 8
"""Up to this many columns, counting who beats whom is faster than a selection in every row."""
_TABLE = 4096


def topk_rows(scores: Tensor, k: int) -> Tensor:
    """Mask of the k largest scores of every row; of equal scores the lowest column wins.

    Args:
        scores: (rows, columns), any real dtype; `-inf` marks what should go last.
        k: Active entries of a row, 0 to the number of columns.

    Returns:
        Bool tensor of the shape of `scores`.

    Raises:
        SparsifyError: When a score is NaN, or k is out of range.
    """
    columns = scores.shape[1]
    if not 0 <= k <= columns:
        raise SparsifyError(f"cannot keep {k} of {columns} entries in a row")
    if k in (0, columns) or not scores.numel():
        return torch.full(scores.shape, k == columns, dtype=torch.bool, device=scores.device)
    values = scores.detach()
    if not values.dtype.is_floating_point or values.dtype.itemsize < 4:
        values = values.float()
    if torch.isnan(values.amax(1)).any():
        raise SparsifyError("scores contain NaN: the weights or gradients they come from have diverged")
    if columns <= _PAIRWISE:
        return _by_rank(values, k)
    mask, missing, equal = _above_threshold(values, k)
    split = (missing != equal.sum(1, dtype=torch.int32)).nonzero().reshape(-1)
    mask |= equal
    if split.numel():
        few = equal[split]
        first = few & (few.cumsum(1) <= missing[split, None])
        mask[split] = (mask[split] & ~few) | first
    return mask


def random_rows(rows: int, columns: int, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Mask with exactly k entries set in every row, every such mask equally likely.

    Each row takes its k largest of random 32-bit numbers, or draws from a table of all masks where these are
    few. A row where the k-th number equals the next is drawn again, since position would decide there.

    Args:
        rows: Number of rows.
        columns: Entries of a row.
        k: Active entries of a row, 0 to `columns`.
        generator: Source of randomness; the mask lives on its device.

    Raises:
        SparsifyError: When k is out of range.
    """
    device = torch.device("cpu") if generator is None else generator.device
    if not 0 <= k <= columns:
        raise SparsifyError(f"cannot keep {k} of {columns} entries in a row")
    if k in (0, columns):
        return torch.full((rows, columns), k == columns, dtype=torch.bool, device=device)
    if 2 * k > columns:
        return ~random_rows(rows, columns, columns - k, generator)
    if comb(columns, k) <= _TABLE:
        table = _all_masks(columns, k).to(device)
        return table[torch.randint(len(table), (rows,), generator=generator, device=device)]
    mask = torch.empty((rows, columns), dtype=torch.bool, device=device)
    pending = torch.arange(rows, device=device)
    while pending.numel():
        drawn, missing, equal = _above_threshold(_words(pending.numel(), columns, generator, device), k)
        drawn |= equal
        mask[pending] = drawn
        pending = pending[missing != equal.sum(1, dtype=torch.int32)]
    return mask


def _all_masks(columns: int, k: int) -> Tensor:
    chosen = torch.tensor(list(combinations(range(columns), k)))
    return torch.zeros(len(chosen), columns, dtype=torch.bool).scatter_(1, chosen, True)


def _words(rows: int, columns: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Uniform 32-bit numbers, drawn two at a time."""
    words = torch.empty(-(-rows * columns // 2), dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int32)[: rows * columns].reshape(rows, columns)


def _above_threshold(values: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """What lies above each row's k-th largest value, how many more are needed, and what equals it."""
    columns = values.shape[1]
    if values.device.type == "cpu":
        # NumPy's selection is several times faster than torch.topk and torch.kthvalue on a CPU.
        parted = np.partition(values.contiguous().numpy(), columns - k, axis=1)
        threshold = torch.from_numpy(parted[:, columns - k].copy())
    else:
        threshold = torch.topk(values, k, dim=1, sorted=False).values.amin(1)
    mask = values > threshold[:, None]
    return mask, k - mask.sum(1, dtype=torch.int32), values == threshold[:, None]


def _by_rank(values: Tensor, k: int) -> Tensor:
    """Few columns: an entry is kept when fewer than k of its row beat it; ties go to the lower column."""
    rows, columns = values.shape
    by_column = values.t().contiguous()
    beaten = torch.zeros((columns, rows), dtype=torch.int8, device=values.device)
    for i in range(columns - 1):
        for j in range(i + 1, columns):
            later_wins = by_column[j] > by_column[i]
            beaten[i] += later_wins
            beaten[j] += ~later_wins
    return (beaten < k).t().contiguous()
