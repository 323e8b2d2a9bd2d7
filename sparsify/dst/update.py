"""Old mask to new mask: drop the smallest weights, grow elsewhere. Masks and scores are (cells, units)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsify.dst.cells import Cells
from sparsify.masks import Pattern, topk_mask
from sparsify.masks.rows import topk_rows
from sparsify.masks.unstructured import Unstructured


def keep_largest(magnitude: Tensor, mask: Tensor, kept: int) -> Tensor:
    """The `kept` active units of largest magnitude, over all cells together; ties to the lower position."""
    return _inside(mask, magnitude, lambda scores: topk_mask(scores, kept))


def largest_active(magnitude: Tensor, mask: Tensor, per_cell: int) -> Tensor:
    """The `per_cell` active units of largest magnitude of every cell; a cell with fewer gets others too."""
    return _inside(mask, magnitude, lambda scores: largest_of_cells(scores, per_cell))


def _inside(mask: Tensor, magnitude: Tensor, select: Callable[[Tensor], Tensor]) -> Tensor:
    """Selects by magnitude among active units.

    Inactive units have magnitude 0, so that they are chosen only where active ones are 0 too.
    """
    chosen = select(magnitude)
    if not bool((chosen > mask).any()):
        return chosen
    return select(magnitude.masked_fill(~mask, -torch.inf))


def fill(
    keep: Tensor, magnitude: Tensor, growth: Tensor, per_cell: int, alive: Tensor | None = None
) -> Tensor:
    """Brings every cell to the same count: kept units first, then those of largest growth score.

    Args:
        keep: Bool (cells, units): what stays. A cell that keeps too many loses those of smallest magnitude.
        magnitude: (cells, units).
        growth: (cells, units), finite; overwritten.
        per_cell: Active units of a cell.
        alive: Bool (cells,): cells to fill; the others become empty. All by default.

    Returns:
        Bool (cells, units) with exactly `per_cell` active units in each living cell.
    """
    if alive is not None:
        keep = keep & alive[:, None]
    keep = thinned(keep, magnitude, per_cell)
    new = largest_of_cells(growth.masked_fill_(keep, torch.inf), per_cell)
    return new if alive is None else new & alive[:, None]


def thinned(keep: Tensor, magnitude: Tensor, per_cell: int) -> Tensor:
    """Takes from every cell that keeps too many units those of smallest magnitude."""
    crowded = (cell_counts(keep) > per_cell).nonzero().reshape(-1)
    if not crowded.numel():
        return keep
    scores = magnitude[crowded].masked_fill(~keep[crowded], -torch.inf)
    return keep.index_put((crowded,), topk_rows(scores, per_cell))


def cell_counts(mask: Tensor) -> Tensor:
    """Active units of every cell."""
    return torch.count_nonzero(mask).reshape(1) if len(mask) == 1 else mask.sum(1, dtype=torch.int32)


def largest_of_cells(scores: Tensor, per_cell: int) -> Tensor:
    """The `per_cell` largest scores of every cell."""
    return topk_mask(scores, per_cell) if len(scores) == 1 else topk_rows(scores, per_cell)


def present_count(mask: Tensor) -> tuple[int, Tensor | None]:
    """The largest count of a cell, which is that of every living one in a mask of a pattern, and which live.

    The second is None where no cell is empty.
    """
    counts = cell_counts(mask)
    alive = counts > 0
    return int(counts.max()), None if bool(alive.all()) else alive


def drop_and_grow(
    weight: Tensor, mask: Tensor, growth: Tensor, fraction: float, pattern: Pattern | None = None
) -> Tensor:
    """A new mask with exactly as many active entries as the old one.

    Drops the int(active · fraction) active units of smallest magnitude over the whole weight, then fills
    every cell of the pattern up to its count, among the units not kept, by largest growth score; just-dropped
    ones are eligible. Ties go to the lower position. An ablated row of a fan-in mask stays empty.

    Args:
        weight: Any shape, outputs first.
        mask: Bool, same shape: the current topology, of the pattern.
        growth: Same shape: RigL takes |dense gradient|, SET a random draw.
        fraction: Share of active units to drop, in [0, 1].
        pattern: What the mask looks like; unstructured by default.

    Returns:
        The new mask.

    Source: google-research/rigl; Evci et al. (arXiv 1911.11134), algorithm 1.
    """
    cells = Cells(pattern or Unstructured(), tuple(weight.shape))
    magnitude, folded = cells.fold(weight.detach().abs()), cells.fold_mask(mask)
    return cells.unfold(exchange(magnitude, folded, cells.fold(growth.detach().clone()), fraction))


def exchange(magnitude: Tensor, mask: Tensor, growth: Tensor, fraction: float) -> Tensor:
    """`drop_and_grow` in cells: magnitude, mask, growth (overwritten) and result are (cells, units)."""
    active = int(torch.count_nonzero(mask))
    dropped = int(active * fraction)
    if dropped == 0:
        return mask.clone()
    per_cell, alive = present_count(mask)
    return fill(keep_largest(magnitude, mask, active - dropped), magnitude, growth, per_cell, alive)
