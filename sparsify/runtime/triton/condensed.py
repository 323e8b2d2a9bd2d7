"""Constant fan-in: rows of equal length, without pointers; the input gradient runs on compressed columns."""

from __future__ import annotations

from torch import Tensor

from sparsify.runtime.triton import rows
from sparsify.runtime.triton.epilogue import Ending
from sparsify.runtime.triton.packed import Condensed, Rows


def forward(x: Tensor, packed: Condensed, ending: Ending) -> Tensor:
    """What `ending` makes of X · Wᵀ: X `[batch, in]`, Y `[batch, out]`."""
    return rows.product(x, _index(packed), packed.shape[0], ending)


def weight_gradient(x: Tensor, dy: Tensor, packed: Condensed) -> Tensor:
    """dYᵀ · X at the stored positions `[out, fan_in]`: X `[batch, in]`, dY `[batch, out]`."""
    return rows.weight_gradient(x, dy, _index(packed))


def _index(packed: Condensed) -> Rows:
    return Rows(None, packed.columns, packed.values, packed.values.shape[1])
