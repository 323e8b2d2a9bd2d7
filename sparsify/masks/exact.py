"""Masks with an exact number of active entries.

A threshold prunes too much on ties and too little elsewhere; these functions work with counts. Equal
scores are settled by position, so a mask is a function of its scores alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsify.errors import SparsifyError


def topk_mask(scores: Tensor, k: int) -> Tensor:
    """Mask of the k largest scores; of equal scores the lowest (flat) index wins.

    Args:
        scores: Any shape, any real dtype; `-inf` marks what should go last.
        k: Active entries, 0 to `scores.numel()`.

    Returns:
        Bool tensor of the shape of `scores` with exactly k entries set.

    Raises:
        SparsifyError: When a score is NaN, or k is out of range.
    """
    numel = scores.numel()
    if not 0 <= k <= numel:
        raise SparsifyError(f"cannot keep {k} of {numel} entries")
    if k == 0 or k == numel:
        return torch.full(scores.shape, k == numel, dtype=torch.bool, device=scores.device)
    flat = scores.detach().reshape(-1)
    if not flat.dtype.is_floating_point or flat.dtype.itemsize < 4:
        flat = flat.float()
    if torch.isnan(flat.sum()) and torch.isnan(flat).any():
        raise SparsifyError("scores contain NaN: the weights or gradients they come from have diverged")
    threshold = _kth_largest(flat, k)
    return _at_least(flat, threshold, k).reshape(scores.shape)


def magnitude_mask(weight: Tensor, k: int) -> Tensor:
    """Mask of the k entries of largest magnitude; of equal ones the lowest (flat) index wins.

    The same mask as `topk_mask(weight.abs(), k)`, with one temporary copy of the weight instead of two.

    Args:
        weight: Any shape, any real dtype.
        k: Active entries, 0 to `weight.numel()`.

    Raises:
        SparsifyError: When a weight is NaN, or k is out of range.
    """
    flat = weight.detach().reshape(-1)
    if flat.device.type != "cpu" or flat.dtype != torch.float32 or not 0 < k < flat.numel():
        return topk_mask(weight.detach().abs(), k)
    magnitudes = flat.abs()
    if torch.isnan(magnitudes.sum()) and torch.isnan(magnitudes).any():
        raise SparsifyError(
            "weights contain NaN: they have diverged, or the file that they come from is damaged"
        )
    array = magnitudes.numpy()
    array.partition(flat.numel() - k)
    threshold = float(array[flat.numel() - k])
    del array
    torch.abs(flat, out=magnitudes)
    return _at_least(magnitudes, threshold, k).reshape(weight.shape)


def _at_least(flat: Tensor, threshold: float, k: int) -> Tensor:
    """k entries of at least the threshold, of those that equal it the first ones."""
    mask = flat >= threshold
    surplus = int(torch.count_nonzero(mask)) - k
    if surplus:
        ties = torch.nonzero(flat == threshold).reshape(-1)
        mask[ties[len(ties) - surplus :]] = False
    return mask


def _kth_largest(flat: Tensor, k: int) -> float:
    if flat.device.type == "cpu":
        # NumPy's selection is some fifteen times faster than torch.topk and torch.kthvalue on a CPU, but
        # twenty times slower where most entries are equal, as zero gradients are.
        array = flat.numpy()
        least = array.min()
        above = array[array > least]
        if k > above.size:
            return float(least)
        above.partition(above.size - k)
        return float(above[above.size - k])
    return float(torch.topk(flat, k, sorted=False).values.min())


def random_mask(shape: Sequence[int], k: int, generator: torch.Generator | None = None) -> Tensor:
    """Mask with exactly k entries set, every such mask equally likely.

    Independent draws followed by random flips of the entries that are too many or too few: linear time, two
    bytes an entry, no sort. Draws and flips treat all entries alike, so rounding the probability of a draw
    does not favour any mask.

    Args:
        shape: Shape of the mask.
        k: Active entries, 0 to the number of entries.
        generator: Source of randomness; the mask lives on its device.

    Raises:
        SparsifyError: When k is out of range.
    """
    numel = math.prod(shape)
    if not 0 <= k <= numel:
        raise SparsifyError(f"cannot keep {k} of {numel} entries")
    device = torch.device("cpu") if generator is None else generator.device
    mask = _draw(numel, k / max(1, numel), generator, device)
    excess = int(torch.count_nonzero(mask)) - k
    if excess:
        _flip(mask, value=excess < 0, flips=abs(excess), generator=generator)
    return mask.reshape(tuple(shape))


def _draw(numel: int, probability: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Independent entries, set with the probability rounded to 1/256: a byte of randomness each.

    Some ten times faster than `bernoulli_`, which draws one entry after the other.
    """
    words = torch.empty(-(-numel // 8), dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.uint8)[:numel] < min(255, round(256 * probability))


def _flip(mask: Tensor, *, value: bool, flips: int, generator: torch.Generator | None) -> None:
    """Sets `flips` uniformly chosen entries that differ from `value` to it, by rejection sampling."""
    numel = mask.numel()
    while flips:
        active = int(torch.count_nonzero(mask))
        eligible = numel - active if value else active
        draws = min(4 * numel, math.ceil(1.1 * flips * numel / eligible) + 16)
        drawn = torch.randint(numel, (draws,), generator=generator, device=mask.device)
        drawn = drawn[mask[drawn] != value]
        drawn = _first_occurrences(drawn)[:flips]
        mask[drawn] = value
        flips -= drawn.numel()


def _first_occurrences(values: Tensor) -> Tensor:
    """Drops repeats, keeping the order: truncating a sorted list would favour low indices."""
    ordered, order = torch.sort(values, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return values[torch.sort(order[first]).values]
