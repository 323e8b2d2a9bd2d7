"""What follows the sums of every kernel: bias, activation, and adding up the parts of split sums."""

from __future__ import annotations

import torch

from sparsify.errors import UserError
from sparsify.runtime.triton.language import tl, triton
from sparsify.runtime.triton.launch import Config, start

ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
"""Fused activations: `gelu` is the exact one, `gelu_tanh` its approximation, `silu` is x · sigmoid(x)."""

_COMBINE = Config("combine", entries=512)


@triton.jit
def activate(x: tl.tensor, ACTIVATION: tl.constexpr) -> tl.tensor:
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
    return x


@triton.jit
def store_tile(
    sums: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    batches: tl.tensor,
    outputs: tl.tensor,
    batch: tl.tensor,
    width: tl.tensor,
    split: tl.tensor,
    SPLITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
) -> None:
    """Stores sums [batches, outputs]: finished to `[batch, width]`, or parts to `[SPLITS, batch, width]`."""
    live = (batches < batch)[:, None] & (outputs < width)[None, :]
    place = batches.to(tl.int64)[:, None] * width + outputs[None, :]
    if SPLITS == 1:
        if bias is not None:
            sums += tl.load(bias + outputs, mask=outputs < width, other=0.0).to(sums.dtype)[None, :]
        sums = activate(sums, ACTIVATION)
    else:
        place += split.to(tl.int64) * batch * width
    tl.store(y + place, sums.to(y.dtype.element_ty), mask=live)


@triton.jit
def combine_kernel(
    parts: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    SPLITS: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """y = activation(Σ parts + bias), elements of `[batch, width]` in a row."""
    place = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    live = place < size
    sums = tl.zeros([ENTRIES], ACC)
    for split in tl.static_range(SPLITS):
        sums += tl.load(parts + split * size + place, mask=live, other=0.0)
    if bias is not None:
        sums += tl.load(bias + place % width, mask=live, other=0.0).to(ACC)
    tl.store(y + place, activate(sums, ACTIVATION).to(y.dtype.element_ty), mask=live)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of sums: float64 for float64, which is there for gradient checks; else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulator_name(dtype: torch.dtype) -> tl.dtype:
    """The same as Triton's type."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def check_activation(activation: str | None) -> str:
    """The activation's name; None is `none`.

    Raises:
        UserError: There is none of that name.
    """
    name = "none" if activation is None else activation
    if name not in ACTIVATIONS:
        raise UserError(f"no fused activation {name!r} on the GPU; there are {', '.join(ACTIVATIONS)}")
    return name


def parts_like(y: torch.Tensor, splits: int) -> torch.Tensor:
    """Where kernels store: y itself, or room for split sums `[splits, *y.shape]`."""
    if splits == 1:
        return y
    return torch.empty((splits, *y.shape), dtype=accumulator(y.dtype), device=y.device)


def combine(parts: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, activation: str) -> None:
    """Adds up split sums `[splits, batch, out]` into y `[batch, out]`; nothing to do where parts is y."""
    if parts is y:
        return
    arguments = {
        "parts": parts,
        "bias": bias,
        "y": y,
        "size": y.numel(),
        "width": y.shape[-1],
        "SPLITS": parts.shape[0],
        "ENTRIES": _COMBINE.entries,
        "ACTIVATION": activation,
        "ACC": accumulator_name(y.dtype),
    }
    start(combine_kernel, (triton.cdiv(y.numel(), _COMBINE.entries),), arguments, _COMBINE)
