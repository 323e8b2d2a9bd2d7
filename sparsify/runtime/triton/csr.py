"""Compressed sparse rows: any mask."""

from __future__ import annotations

from torch import Tensor

from sparsify.runtime.triton import rows
from sparsify.runtime.triton.epilogue import Ending
from sparsify.runtime.triton.packed import Csr, Rows


def forward(x: Tensor, packed: Csr, ending: Ending) -> Tensor:
    """What `ending` makes of X · Wᵀ: X `[batch, in]`, Y `[batch, out]`."""
    return rows.product(x, _index(packed), packed.shape[0], ending)


def weight_gradient(x: Tensor, dy: Tensor, packed: Csr) -> Tensor:
    """dYᵀ · X at the stored positions: X `[batch, in]`, dY `[batch, out]`."""
    return rows.weight_gradient(x, dy, _index(packed))


def _index(packed: Csr) -> Rows:
    return Rows(packed.pointers, packed.columns, packed.values, packed.longest)
