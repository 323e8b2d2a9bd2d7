"""Given weights under masks of a pattern: which entries a widened weight, and each branch, keeps."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from sparsify.masks import NM, Blocks, FanIn, Pattern, Unstructured, from_matrix
from sparsify.passes.connect import drawn_std, spread
from sparsify.passes.decompose import Choose, partition
from sparsify.passes.dense import corner, others
from sparsify.passes.preserve_wide import place_plain, shares

_CHOSEN, _OLD = 4.0, 2.0
"""Scores: connections of new units that were chosen, then old weights by magnitude, then what is left."""


def chooser(pattern: Pattern, shape: Sequence[int]) -> Choose:
    """The masks of a pattern for a weight that is handled as a matrix [outputs, inputs · kernel]."""

    def choose(scores: Tensor, nnz: int) -> Tensor:
        return pattern.mask_from_scores(scores.reshape(tuple(shape)), nnz).reshape(scores.shape)

    return choose


def place_patterned(
    new: Tensor,
    old: Tensor,
    places: tuple[Tensor | None, ...],
    nnz: int,
    share: float,
    generator: torch.Generator,
    pattern: Pattern,
) -> Tensor:
    """Places a weight and chooses its mask: the largest old weights that the pattern allows.

    New outputs read old inputs with drawn values, new inputs feed old outputs with value 0, as in
    `place_masked`. Where the pattern leaves no choice it decides how many: with constant fan-in new outputs
    have as many inputs as old ones, and n:m has n active in every group of new inputs too.

    Args:
        new: Weight [outputs, inputs, ...], filled in place.
        old: Weight of the dense layer.
        places: Places of the old entries by dimension; kernels do not grow.
        nnz: Active weights, a count of the pattern.
        share: Share of `nnz` for new units, where the pattern leaves it open.
        generator: Source of randomness, on the device of `new`.
        pattern: The pattern; not unstructured.

    Returns:
        The mask, of the pattern and with exactly `nnz` active entries.
    """
    place_plain(new, old, places, 0)
    rows = _is_old(places[0], new.shape[0]).to(new.device)
    columns = _is_old(places[1], new.shape[1]).to(new.device)
    spatial = tuple(1 for _ in new.shape[2:])
    scores = torch.rand(new.shape, generator=generator, device=new.device)
    scores -= ((~rows).view(-1, 1, *spatial) & (~columns).view(1, -1, *spatial)).float()
    largest = float(old.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    scores[corner(places, tuple(old.shape))] = _OLD + (old.abs().float() / largest).to(new.device)
    if isinstance(pattern, Blocks):
        scores = _by_tile(scores, rows, columns, nnz, share, pattern, generator)
    elif isinstance(pattern, FanIn) and share:
        outgoing = min(round(share * nnz / 2), int(rows.sum()) * int((~columns).sum()) * prod(new.shape[2:]))
        _choose_outgoing(scores, rows, columns, outgoing, generator)
    mask = pattern.mask_from_scores(scores, nnz)
    incoming = mask & ~rows.view(-1, 1, *spatial) & columns.view(1, -1, *spatial)
    count = int(incoming.sum())
    if count:
        std = drawn_std(float(old.float().std()), old[0].numel(), count / int((~rows).sum()))
        values = torch.empty_like(new).normal_(0.0, std, generator=generator)
        new += values * incoming
    new *= mask
    return mask


def branches(
    w: Tensor, counts: Sequence[int], pattern: Pattern, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """What each parallel branch holds of a weight, and its mask: every weight is in one branch.

    Where the counts sum to less than `w` has, the largest weights that the pattern allows are kept; where
    they sum to more, the rest of a mask are active positions of value 0.

    Args:
        w: The weight.
        counts: Active weights of each branch, counts of the pattern.
        pattern: The pattern of every mask.
        generator: Source of randomness, on the device of `w`.

    Returns:
        Values and mask of each branch, of the shape of `w`.
    """
    unit = w.numel() // pattern.m if isinstance(pattern, NM) else pattern.unit(w.shape)
    own = _own(counts, min(sum(counts), w.numel()), unit)
    if isinstance(pattern, Unstructured):
        parts = partition(w, own, generator)
    else:
        parts = _partition(w, own, pattern, generator)
    found = []
    for part, count, first in zip(parts, counts, own, strict=True):
        mask = part
        if count > first:
            random = torch.rand(w.shape, generator=generator, device=w.device)
            mask = pattern.mask_from_scores(random + 2.0 * part, count)
        found.append((w * part, mask))
    return found


def _partition(
    w: Tensor, counts: Sequence[int], pattern: Pattern, generator: torch.Generator
) -> list[Tensor]:
    """Disjoint masks of a pattern, which together are the largest weights that it allows."""
    free = pattern.mask_from_scores(w.abs(), sum(counts))
    masks = []
    for count in counts:
        mask = torch.zeros_like(free)
        if count:
            random = torch.rand(w.shape, generator=generator, device=w.device)
            mask = pattern.mask_from_scores(random + 2.0 * free, count)
        free &= ~mask
        masks.append(mask)
    return masks


def _own(counts: Sequence[int], total: int, unit: int) -> list[int]:
    """How many of `total` weights each branch takes, in units, as even as its count allows."""
    each, more = divmod(total // unit, len(counts))
    return [min(count, unit * (each + (index < more))) for index, count in enumerate(counts)]


def _is_old(place: Tensor | None, size: int) -> Tensor:
    old = torch.ones(size, dtype=torch.bool)
    if place is not None:
        old[others(place, size)] = False
    return old


def _choose_outgoing(
    scores: Tensor, rows: Tensor, columns: Tensor, outgoing: int, generator: torch.Generator
) -> None:
    """Every new input feeds as many old outputs as any other, give or take one."""
    kernel = prod(scores.shape[2:])
    height, width = int(rows.sum()), int((~columns).sum())
    if not outgoing:
        return
    block = spread(width, height * kernel, outgoing, generator)
    block = block.view(width, height, kernel).transpose(0, 1).reshape(height, width, *scores.shape[2:])
    part = scores[rows]
    chosen = part[:, ~columns]
    chosen[block] += _CHOSEN
    part[:, ~columns] = chosen
    scores[rows] = part


def _by_tile(
    scores: Tensor,
    rows: Tensor,
    columns: Tensor,
    nnz: int,
    share: float,
    pattern: Blocks,
    generator: torch.Generator,
) -> Tensor:
    """Scores that are equal within a tile: its old weights' mean, or that of a chosen connection."""
    kernel = prod(scores.shape[2:])
    tile_rows = rows.view(-1, pattern.r).any(1)
    tile_columns = columns.view(-1, pattern.c).any(1).repeat(kernel)
    inside = scores.masked_fill(~(rows.view(-1, *(1 for _ in scores.shape[1:]))), 0.0)
    inside = inside.movedim(1, -1).masked_fill(~columns, 0.0).movedim(-1, 1)
    grid = pattern.sums(inside) / (pattern.r * pattern.c)
    old = tile_rows[:, None] & tile_columns
    random = torch.rand(grid.shape, generator=generator, device=grid.device)
    grid = torch.where(old, _OLD + grid, random - 1.0 * ~(tile_rows[:, None] | tile_columns))
    tiles = nnz // (pattern.r * pattern.c)
    room = int(old.sum())
    given = min(grid.numel() - room, max(tiles - room, min(round(share * tiles), tiles - 1)))
    new_rows, new_columns = (~tile_rows).nonzero().reshape(-1), (~tile_columns).nonzero().reshape(-1)
    old_rows, old_columns = tile_rows.nonzero().reshape(-1), tile_columns.nonzero().reshape(-1)
    incoming, outgoing = shares(given, len(new_rows) * len(old_columns), len(old_rows) * len(new_columns))
    if incoming:
        block = spread(len(new_rows), len(old_columns), incoming, generator)
        grid[new_rows[:, None], old_columns] += 2 * _CHOSEN * block
    if outgoing:
        block = spread(len(new_columns), len(old_rows), outgoing, generator).T
        grid[old_rows[:, None], new_columns] += 2 * _CHOSEN * block
    whole = grid.repeat_interleave(pattern.r, 0).repeat_interleave(pattern.c, 1)
    return from_matrix(whole, scores.shape)
