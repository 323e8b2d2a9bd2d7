"""A weight-bearing node as the later stages see it, and the matchers' common vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsify.lowering.graph import Refused

Array = np.ndarray


@dataclass(frozen=True)
class ConvGeometry:
    """Geometry of a two-dimensional convolution.

    Attributes:
        strides: Steps (vertical, horizontal).
        pads: Zeros added (top, left, bottom, right).
        dilations: Distances between taps (vertical, horizontal).
    """

    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A node that computes `activation(W x + bias + residual)` with constant W.

    Attributes:
        index: Index of the matched node.
        node: Its name.
        op: Its operator: MatMul, Gemm or Conv.
        weight: Dense float32 weight, [out, in] or [out, in, kh, kw].
        weight_key: Name of the weight in the file, and how it is read; equal for nodes that share both.
        x: Name of the input value.
        output: Name of the value that the replacement writes.
        bias: Constant float32 [out], or None.
        residual: Name of a value of the output's shape that is added, or None.
        activation: "none", "relu", "gelu" or "gelu_tanh".
        geometry: For convolutions.
        consumed: Indices of all nodes that the replacement stands for.
    """

    index: int
    node: str
    op: str
    weight: Array
    weight_key: tuple[str, str]
    x: str
    output: str
    bias: Array | None = None
    residual: str | None = None
    activation: str = "none"
    geometry: ConvGeometry | None = None
    consumed: tuple[int, ...] = ()

    @property
    def density(self) -> float:
        """Kept share of the weight."""
        return float(np.count_nonzero(self.weight)) / max(1, self.weight.size)


@dataclass(frozen=True)
class LeftAlone:
    """A weight-bearing node that is not lowered.

    Attributes:
        node: Its name.
        op: Its operator.
        shape: Shape of its weight in the file, empty where it is unknown.
        density: Kept share of the weight, 1.0 where it is unknown.
        reason: Why, in a sentence.
        layout: Packed layout of a node that is sparse already.
    """

    node: str
    op: str
    shape: tuple[int, ...]
    density: float
    reason: str
    layout: str | None = None


def float_weight(value: Array | Refused, name: str) -> Array | Refused:
    """Checks that a constant is a usable float32 weight."""
    if isinstance(value, Refused):
        return value
    if value.dtype != np.float32:
        return Refused(f"weight {name!r} is {value.dtype}; only float32 is lowered")
    return value


def vector_of(value: Array | Refused | None, size: int, *, axis: int, rank: int | None) -> Array | None:
    """Reads a constant as one float32 number per output, if it broadcasts so.

    Args:
        value: The constant.
        size: Number of outputs.
        axis: The output axis counted from the end (1: last, 3: channels of NCHW).
        rank: Rank of what it is added to, None where unknown.

    Returns:
        float32 [size], or None where the constant varies along another axis or would enlarge the result.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        return None
    if value.ndim > (axis if rank is None else rank):
        return None
    if value.size == 1:
        return np.full(size, value.reshape(()), dtype=np.float32)
    if value.ndim < axis or value.shape[-axis] != size or value.size != size:
        return None
    return np.ascontiguousarray(value.reshape(size))
