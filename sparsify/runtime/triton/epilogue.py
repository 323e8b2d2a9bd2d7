"""What follows the sums of every kernel: bias, residual, activation, and adding up parts of split sums."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import UserError
from sparsify.runtime.triton.language import tl, triton
from sparsify.runtime.triton.launch import Config, start

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "clip")
"""Fused activations: `gelu` is the exact one, `gelu_tanh` its approximation, `silu` is x · sigmoid(x), `clip`
min(max(x, low), high)."""

_COMBINE = Config("combine", entries=512)


@dataclass(frozen=True)
class Ending:
    """activation(sums + bias + residual).

    Attributes:
        bias: `[out]`, contiguous.
        residual: Of the shape of the sums, contiguous.
        activation: One of `ACTIVATIONS`.
        low: Of `clip`; None where there is no such bound.
        high: Likewise.
    """

    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"
    low: float | None = None
    high: float | None = None

    def arguments(self, splits: int = 1) -> dict[str, Any]:
        """A kernel's arguments; parts of split sums are finished when they are added up."""
        whole = splits == 1
        return {
            "bias": self.bias if whole else None,
            "residual": self.residual if whole else None,
            "ACTIVATION": self.activation,
            "LOW": self.low,
            "HIGH": self.high,
        }

    def turned(self) -> Ending:
        """The same for sums that are stored transposed."""
        if self.residual is None:
            return self
        return dataclasses.replace(self, residual=self.residual.t().contiguous())


_CLOSE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "none": lambda x: x,
}


def closed(sums: Tensor, ending: Ending) -> Tensor:
    """The activation of an ending in torch's own operators, differentiable."""
    if ending.activation == "clip":
        bounded = ending.low is not None or ending.high is not None
        return sums.clamp(ending.low, ending.high) if bounded else sums
    return _CLOSE[ending.activation](sums)


NOTHING = Ending()
"""Sums as they are."""


@triton.jit
def activate(x: tl.tensor, ACTIVATION: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr) -> tl.tensor:
    """The activation of x, in its own type; NaN stays NaN."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # ½ (1 + tanh u) = sigmoid(2u), which needs no tanh.
        x = x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "clip":
        if LOW is not None:
            low = tl.full(x.shape, LOW, x.dtype)
            x = tl.where(x < low, low, x)
        if HIGH is not None:
            high = tl.full(x.shape, HIGH, x.dtype)
            x = tl.where(x > high, high, x)
    return x


@triton.jit
def store_tile(
    sums: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    batches: tl.tensor,
    outputs: tl.tensor,
    batch: tl.tensor,
    width: tl.tensor,
    split: tl.tensor,
    SPLITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
) -> None:
    """Stores sums [batches, outputs]: finished to `[batch, width]`, or parts to `[SPLITS, batch, width]`."""
    live = (batches < batch)[:, None] & (outputs < width)[None, :]
    place = batches.to(tl.int64)[:, None] * width + outputs[None, :]
    if SPLITS == 1:
        if bias is not None:
            sums += tl.load(bias + outputs, mask=outputs < width, other=0.0).to(sums.dtype)[None, :]
        if residual is not None:
            sums += tl.load(residual + place, mask=live, other=0.0).to(sums.dtype)
        sums = activate(sums, ACTIVATION, LOW, HIGH)
    else:
        place += split.to(tl.int64) * batch * width
    tl.store(y + place, sums.to(y.dtype.element_ty), mask=live)


@triton.jit
def combine_kernel(
    parts: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    SPLITS: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """y = activation(Σ parts + bias + residual), elements of `[batch, width]` in a row."""
    place = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    live = place < size
    sums = tl.zeros([ENTRIES], ACC)
    for split in tl.static_range(SPLITS):
        sums += tl.load(parts + split * size + place, mask=live, other=0.0)
    if bias is not None:
        sums += tl.load(bias + place % width, mask=live, other=0.0).to(ACC)
    if residual is not None:
        sums += tl.load(residual + place, mask=live, other=0.0).to(ACC)
    tl.store(y + place, activate(sums, ACTIVATION, LOW, HIGH).to(y.dtype.element_ty), mask=live)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of sums: float64 for float64, which is there for gradient checks; else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulator_name(dtype: torch.dtype) -> tl.dtype:
    """The same as Triton's type."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def ending_of(
    bias: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    bounds: tuple[float, float] | None,
) -> Ending:
    """A checked ending; None for an activation is `none`, infinite bounds are none.

    Raises:
        UserError: There is no such activation, or bounds do not go with it.
    """
    name = "none" if activation is None else activation
    if name not in ACTIVATIONS:
        raise UserError(f"no fused activation {name!r} on the GPU; there are {', '.join(ACTIVATIONS)}")
    if (name == "clip") != (bounds is not None):
        raise UserError(f"bounds go with the activation 'clip' and with no other; this is {name!r}")
    low, high = bounds or (-math.inf, math.inf)
    if not low <= high:
        raise UserError(f"clip needs a low and a high bound, the low one first, not {low} and {high}")
    finite = (None if math.isinf(low) else low, None if math.isinf(high) else high)
    return Ending(bias, residual, name, *finite)


def parts_like(y: torch.Tensor, splits: int) -> torch.Tensor:
    """Where kernels store: y itself, or room for split sums `[splits, *y.shape]`."""
    if splits == 1:
        return y
    return torch.empty((splits, *y.shape), dtype=accumulator(y.dtype), device=y.device)


def combine(parts: torch.Tensor, ending: Ending, y: torch.Tensor) -> None:
    """Adds up split sums `[splits, batch, out]` into y `[batch, out]`; nothing to do where parts is y."""
    if parts is y:
        return
    arguments = {
        "parts": parts,
        "y": y,
        "size": y.numel(),
        "width": y.shape[-1],
        "SPLITS": parts.shape[0],
        "ENTRIES": _COMBINE.entries,
        "ACC": accumulator_name(y.dtype),
        **ending.arguments(),
    }
    start(combine_kernel, (triton.cdiv(y.numel(), _COMBINE.entries),), arguments, _COMBINE)
