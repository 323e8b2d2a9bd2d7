"""Roots of f(η) = Σ clip(a_j η − b_j, 0, 1) = k, nondecreasing and piecewise linear.

Two ways: bisection, a fixed number of vector operations, and randomised selection over the breakpoints, O(m)
expected. Neither adds up slopes along sorted breakpoints: differences of running sums cancel.
"""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparsify.errors import UserError

Method = Literal["auto", "selection", "bisection"]
_HALVINGS = 60

Vector = npt.NDArray[np.float64]


def clipped_root(a: Tensor, b: Tensor, k: int, method: Method = "auto") -> Tensor | float:
    """The η with Σ clip(a_j η − b_j, 0, 1) = k; the smallest one's segment where there are several.

    Args:
        a: Slopes [m], positive, float64.
        b: Offsets [m], at least 0.
        k: 1 to m − 1.
        method: `selection` (on the CPU), `bisection` (anywhere), or `auto`: by device.

    Raises:
        UserError: The method is unknown.
    """
    if method not in ("auto", "selection", "bisection"):
        raise UserError(f"method must be auto, selection or bisection, got {method!r}")
    if method == "selection" or (method == "auto" and a.device.type == "cpu"):
        return _select(a.cpu().numpy(), b.cpu().numpy(), k)
    return _bisect(a, b, k)


def _bisect(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Between 0 and the k-th smallest end of a ramp, where k entries are 1; then exactly on the segment."""
    low = torch.zeros((), dtype=a.dtype, device=a.device)
    high = ((1 + b) / a).kthvalue(k).values
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = (a * middle - b).clamp(0.0, 1.0).sum() < k
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    middle = a * ((low + high) / 2) - b
    ramps, full = (middle > 0) & (middle < 1), middle >= 1
    slope = torch.where(ramps, a, 0.0).sum()
    missing = k - full.sum() + torch.where(ramps, b, 0.0).sum()
    exact = missing / slope.clamp_min(torch.finfo(a.dtype).tiny)
    return torch.where((exact >= low) & (exact <= high), exact, high)


def _select(a: Vector, b: Vector, k: int) -> float:
    """Narrows a bracket to one segment by pivots drawn among the breakpoints inside it.

    What is 0, 1 or a ramp over the whole bracket leaves the arrays, so that each round works on about half.
    """
    draw = random.Random(len(a))
    low, high = 0.0, float(np.partition((1 + b) / a, k - 1)[k - 1])
    full, slope, offset = 0, 0.0, 0.0
    starts, ends = b / a, (1 + b) / a
    while True:
        inside = np.concatenate(
            [starts[(starts > low) & (starts < high)], ends[(ends > low) & (ends < high)]]
        )
        if not inside.size:
            ramps = (starts <= low) & (ends >= high)
            full += int(np.count_nonzero(ends <= low))
            slope, offset = slope + float(a[ramps].sum()), offset + float(b[ramps].sum())
            return high if slope == 0 else min(max((k - full + offset) / slope, low), high)
        pivot = float(inside[draw.randrange(inside.size)])
        value = full + slope * pivot - offset + float(np.clip(a * pivot - b, 0.0, 1.0).sum())
        low, high = (pivot, high) if value < k else (low, pivot)
        ones, ramps = ends <= low, (starts <= low) & (ends >= high)
        full += int(np.count_nonzero(ones))
        ramps &= ~ones
        slope, offset = slope + float(a[ramps].sum()), offset + float(b[ramps].sum())
        open_ = ~(ones | ramps | (starts >= high))
        a, b, starts, ends = a[open_], b[open_], starts[open_], ends[open_]
