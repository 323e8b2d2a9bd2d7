"""Dense weights in widened tensors: the old block, the mask around it, and connections of new units."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from sparsify.masks.exact import magnitude_mask, random_mask
from sparsify.passes.connect import drawn_std, spread
from sparsify.passes.dense import corner, others


def place_plain(new: Tensor, old: Tensor, places: tuple[Tensor | None, ...], fill: float) -> None:
    """Copies `old` to its places in `new`; everything else becomes `fill`.

    Args:
        new: Filled in place.
        old: Of as many dimensions.
        places: For each dimension the places of the old entries, None where all stay.
        fill: Value of new entries.
    """
    if all(place is None for place in places):
        new.copy_(old)
        return
    new.fill_(fill)
    new[corner(places, tuple(old.shape))] = old.to(new.dtype)


def place_masked(
    new: Tensor,
    old: Tensor,
    places: tuple[Tensor | None, ...],
    nnz: int,
    share: float,
    generator: torch.Generator,
) -> Tensor:
    """Places a weight and chooses its mask: the largest old weights, and connections of new units.

    Half of the share goes to incoming connections, from old inputs to new outputs, with drawn values; half to
    outgoing ones, from new inputs to old outputs, with value 0. Only the smallest old weights that give way
    change what the layer computes. What the old block leaves over goes the same way.

    Args:
        new: Weight [outputs, inputs, ...], filled in place.
        old: Weight of the dense layer.
        places: Places of the old entries by dimension; kernels do not grow.
        nnz: Active weights.
        share: Share of `nnz` for new units.
        generator: Source of randomness, on the device of `new`.

    Returns:
        The mask, with exactly `nnz` active entries.
    """
    mask = torch.zeros(new.shape, dtype=torch.bool, device=new.device)
    free = new.numel() - old.numel()
    given = min(free, max(nnz - old.numel(), min(round(share * nnz), nnz - 1)))
    inside = magnitude_mask(old, nnz - given)
    place_plain(new, old * inside, places, 0)
    mask[corner(places, tuple(old.shape))] = inside.to(mask.device)
    kernel = prod(new.shape[2:])
    rows = torch.arange(old.shape[0]) if places[0] is None else places[0]
    columns = torch.arange(old.shape[1]) if places[1] is None else places[1]
    new_rows, new_columns = others(places[0], new.shape[0]), others(places[1], new.shape[1])
    incoming, outgoing = shares(
        given, len(new_rows) * len(columns) * kernel, len(rows) * len(new_columns) * kernel
    )
    flat, flat_mask = new.view(new.shape[0], -1), mask.view(new.shape[0], -1)
    if incoming:
        wide = _entries(columns, kernel)
        block = spread(len(new_rows), len(wide), incoming, generator)
        std = drawn_std(float(old.float().std()), old[0].numel(), incoming / len(new_rows))
        values = torch.empty(block.shape, dtype=new.dtype, device=new.device)
        flat_mask[new_rows[:, None], wide] = block
        flat[new_rows[:, None], wide] = values.normal_(0.0, std, generator=generator) * block
    if outgoing:
        wide = _entries(new_columns, kernel)
        block = spread(len(new_columns), len(rows) * kernel, outgoing, generator)
        block = block.view(len(new_columns), len(rows), kernel).transpose(0, 1).reshape(len(rows), -1)
        flat_mask[rows[:, None], wide] = block
    _fill_up(mask, nnz, generator)
    return mask


def shares(given: int, room_in: int, room_out: int) -> tuple[int, int]:
    """Splits a number of connections in halves, as far as there is room on both sides."""
    incoming = min(room_in, (given + 1) // 2 if room_out else given)
    outgoing = min(room_out, given - incoming)
    return min(room_in, given - outgoing), outgoing


def _entries(columns: Tensor, kernel: int) -> Tensor:
    """Columns of a weight as a matrix [outputs, inputs · kernel]."""
    return (columns[:, None] * kernel + torch.arange(kernel)[None, :]).reshape(-1)


def _fill_up(mask: Tensor, nnz: int, generator: torch.Generator) -> None:
    """Places that are left go between new units, with value 0."""
    missing = nnz - int(torch.count_nonzero(mask))
    if missing > 0:
        rest = (~mask).view(-1).nonzero().reshape(-1)
        mask.view(-1)[rest[random_mask(rest.shape, missing, generator)]] = True
