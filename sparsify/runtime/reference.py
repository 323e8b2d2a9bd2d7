"""The meaning of the sparse operators, in NumPy: kernels are tested against it.

Both compute `y = activation(W x + bias + residual)` in float64 and round once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsify.errors import UserError
from sparsify.runtime.layouts import Packed, unpack

Array = npt.NDArray[np.floating]
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu", "clip")

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)

_erf = np.vectorize(math.erf, otypes=[np.float64])


def activate(x: Array, activation: str, bounds: Bounds = UNBOUNDED) -> Array:
    """Applies a fused activation.

    Args:
        x: Any shape.
        activation: One of `ACTIVATIONS`; `gelu` is the exact one, `gelu_tanh` its approximation, `silu`
            is x · sigmoid(x), `clip` min(max(x, low), high).
        bounds: low and high of `clip`.

    Raises:
        UserError: An unknown activation.
    """
    if activation == "none":
        return x
    if activation == "relu":
        return np.asarray(np.maximum(x, 0))
    if activation == "gelu":
        return np.asarray(0.5 * x * (1 + (_erf(x / math.sqrt(2)) if x.size else x)))
    if activation == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    if activation == "silu":
        return np.asarray(x / (1 + np.exp(np.minimum(-x, 700))))
    if activation == "clip":
        return np.asarray(np.minimum(np.maximum(x, bounds[0]), bounds[1]))
    raise UserError(f"unknown activation {activation!r}; there are {', '.join(ACTIVATIONS)}")


def _product(x: Array, weight: npt.NDArray[np.float32]) -> Array:
    """x `[..., in]` times weight `[out, in]`, transposed; zeros are skipped: NaN times zero adds nothing."""
    sums = np.zeros((*x.shape[:-1], weight.shape[0]))
    for row, values in enumerate(weight.astype(np.float64)):
        (columns,) = np.nonzero(values)
        sums[..., row] = x[..., columns].astype(np.float64) @ values[columns]
    return sums


def _finish(
    sums: Array, bias: Array | None, residual: Array | None, activation: str, bounds: Bounds
) -> npt.NDArray[np.float32]:
    """Sums with their channels last, so that the bias broadcasts; the residual has their shape."""
    if bias is not None:
        sums = sums + bias
    if residual is not None:
        sums = sums + residual
    return np.asarray(activate(sums, activation, bounds), dtype=np.float32)


def sparse_linear(
    x: npt.NDArray[np.float32],
    packed: Packed,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str = "none",
    bounds: Bounds = UNBOUNDED,
) -> npt.NDArray[np.float32]:
    """SparseLinear: X `[..., in]`, bias `[out]`, residual and Y `[..., out]`."""
    return _finish(_product(x, unpack(packed)), bias, residual, activation, bounds)


def _extents(packed: Packed, name: str) -> list[int]:
    value = packed.attributes[name]
    if not isinstance(value, list):
        raise UserError(f"{name} must be a list, not {value!r}")
    return value


def unfold(x: npt.NDArray[np.float32], packed: Packed) -> npt.NDArray[np.float32]:
    """The inputs of every output pixel: `[N, H', W', in * kh * kw]` of X `[N, in, H, W]`.

    Raises:
        UserError: The input is smaller than the dilated kernel.
    """
    strides, pads, dilations = (_extents(packed, name) for name in ("strides", "pads", "dilations"))
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    kernel = packed.shape[2:]
    spans = [(kernel[i] - 1) * dilations[i] + 1 for i in range(2)]
    if padded.shape[2] < spans[0] or padded.shape[3] < spans[1]:
        raise UserError(f"an input of shape {list(x.shape)} is smaller than the dilated kernel")
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    taps = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    return np.moveaxis(taps, 1, 3).reshape(x.shape[0], *taps.shape[2:4], packed.matrix_shape[1])


def sparse_conv(
    x: npt.NDArray[np.float32],
    packed: Packed,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str = "none",
    bounds: Bounds = UNBOUNDED,
) -> npt.NDArray[np.float32]:
    """SparseConv: X `[N, in, H, W]`, bias `[out]`, residual and Y `[N, out, H', W']`.

    Raises:
        UserError: The input is smaller than the dilated kernel.
    """
    sums = _product(unfold(x, packed), unpack(packed).reshape(packed.shape[0], -1))
    last = None if residual is None else np.moveaxis(residual, 1, -1)
    return np.ascontiguousarray(np.moveaxis(_finish(sums, bias, last, activation, bounds), -1, 1))


@dataclass(frozen=True)
class ChainStep:
    """One convolution of a SparseConvChain; values are numbered, outer maps first, then what steps give.

    Attributes:
        packed: Its weight and geometry.
        source: The value that it reads.
        residual: The value that is added, -1 for none.
        bias: `[out]`.
        activation: One of `ACTIVATIONS`.
        bounds: low and high of `clip`.
    """

    packed: Packed
    source: int
    residual: int = -1
    bias: Array | None = None
    activation: str = "none"
    bounds: Bounds = UNBOUNDED


def sparse_conv_chain(
    maps: Sequence[npt.NDArray[np.float32]], steps: Sequence[ChainStep]
) -> npt.NDArray[np.float32]:
    """SparseConvChain: what the last step gives for outer maps `[N, C, H, W]`, each step rounded once.

    Raises:
        UserError: An input is smaller than the dilated kernel.
    """
    values = list(maps)
    for step in steps:
        residual = None if step.residual < 0 else values[step.residual]
        x = values[step.source]
        values.append(sparse_conv(x, step.packed, step.bias, residual, step.activation, step.bounds))
    return values[-1]


def attention(
    q: npt.NDArray[np.float32],
    k: npt.NDArray[np.float32],
    v: npt.NDArray[np.float32],
    bias: Array | None = None,
    *,
    num_heads: int,
    scale: float,
    kv_num_heads: int | None = None,
    causal: bool = False,
    nan_guard: bool = False,
) -> npt.NDArray[np.float32]:
    """Attention: softmax(scale · Q Kᵀ + bias) V, head by head, in float64, rounded once.

    Args:
        q: `[B, S, num_heads · D]`.
        k: `[B, T, kv_num_heads · D]`.
        v: `[B, T, kv_num_heads · E]`.
        bias: Added to the scores; broadcasts to `[B, num_heads, S, T]`.
        num_heads: Heads of Q and of the result.
        scale: What the products of queries and keys are multiplied by.
        kv_num_heads: Heads of K and V, each of which serves as many neighbouring heads of Q; num_heads when
            not given.
        causal: Query i sees the keys up to i, whatever the others hold. Kernels may multiply the values of
            the others by 0, so one that is not finite may spoil any query.
        nan_guard: A query whose scores are all -∞, or among whose scores NaN or +∞ is, gives zeros; without
            it, NaN.

    Returns:
        `[B, S, num_heads · E]`.
    """
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    shared = num_heads // (kv_num_heads or num_heads)

    def heads(x: Array, count: int) -> Array:
        size = x.shape[2] // count
        split = x.astype(np.float64).reshape(batch, x.shape[1], count, size).transpose(0, 2, 1, 3)
        return np.asarray(split.repeat(num_heads // count, axis=1))

    split_v = heads(v, num_heads // shared)
    out = np.zeros((batch, num_heads, queries, split_v.shape[3]))
    with np.errstate(all="ignore"):
        scores = scale * (heads(q, num_heads) @ heads(k, num_heads // shared).swapaxes(2, 3))
        scores = scores + (0.0 if bias is None else bias.astype(np.float64))
        for row in range(queries if keys else 0):
            seen = min(row + 1, keys) if causal else keys
            part = scores[:, :, row, :seen]
            powers = np.exp(part - part.max(axis=-1, keepdims=True))
            weights = powers / powers.sum(axis=-1, keepdims=True)
            result = (weights[:, :, None] @ split_v[:, :, :seen])[:, :, 0]
            invalid = np.isnan(weights).any(axis=-1, keepdims=True)
            out[:, :, row] = np.where(invalid, 0.0 if nan_guard else np.nan, result)
    merged = out.transpose(0, 2, 1, 3).reshape(batch, queries, num_heads * split_v.shape[3])
    return np.asarray(merged, dtype=np.float32)
