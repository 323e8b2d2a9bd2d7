"""Masks that fill a layout, with empty rows and columns, and results to compare with."""

from __future__ import annotations

import re

import numpy as np
import torch

from sparsify.runtime.layouts import pack_linear
from sparsify.runtime.reference import activate, sparse_linear

LAYOUTS = ("csr", "condensed", "blocks-16x16", "blocks-32x16", "nm-2:4", "nm-3:8")
EPSILON = {
    dtype: torch.finfo(dtype).eps for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def mask(layout: str, rows: int, columns: int, density: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    if found := re.fullmatch(r"blocks-(\d+)x(\d+)", layout):
        R, C = int(found[1]), int(found[2])
        blocks = torch.rand(-(-rows // R), -(-columns // C), generator=generator) < density
        blocks[0, :] = False
        blocks[-1, -1] = True
        return blocks.repeat_interleave(R, 0).repeat_interleave(C, 1)[:rows, :columns]
    if found := re.fullmatch(r"nm-(\d+):(\d+)", layout):
        n, m = int(found[1]), int(found[2])
        places = torch.rand(rows, columns // m, m, generator=generator).argsort(2)
        return (places < n).reshape(rows, columns)
    scores = torch.rand(rows, columns, generator=generator)
    if layout == "condensed":
        return scores.argsort(1) < round(density * columns)
    active = scores < density
    active[rows // 2] = False
    active[:, columns // 2] = False
    return active


def weight(active: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(active.shape, generator=generator).to(dtype) * active


def normal(*shape: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


BOUNDS = (-0.4, 0.9)


def bounds_of(activation: str) -> tuple[float, float] | None:
    """What goes with an activation."""
    return BOUNDS if activation == "clip" else None


def reference(
    x: torch.Tensor,
    dense: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> np.ndarray:
    """What SparseLinear means, in NumPy; in float64 throughout for float64, whose packed form is float32."""
    if x.dtype == torch.float64:
        sums = x.numpy() @ dense.numpy().T + (0 if bias is None else bias.numpy())
        return activate(sums + (0 if residual is None else residual.numpy()), activation, BOUNDS)
    packed = pack_linear(dense.float().numpy())
    added = [None if tensor is None else tensor.float().numpy() for tensor in (bias, residual)]
    return sparse_linear(x.float().numpy(), packed, *added, activation=activation, bounds=BOUNDS)


def close(got: torch.Tensor, want: np.ndarray, terms: int) -> bool:
    """Within the rounding of sums of so many terms in float32 (or float64), and of the result in its type."""
    if tuple(got.shape) != want.shape or want.size == 0:
        return False
    inner = EPSILON[torch.float64 if got.dtype == torch.float64 else torch.float32]
    scale = np.abs(want).max() + terms**0.5
    bound = (EPSILON[got.dtype] + inner * (4 + terms**0.5)) * scale
    return bool(np.abs(got.double().numpy() - want).max() <= bound)
