"""A weight-bearing node as the later stages see it, and the matchers' common vocabulary."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sparsify.lowering.graph import Refused
from sparsify.lowering.steps import Step

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
class Addend:
    """What a node adds to its product where the operator cannot.

    Attributes:
        value: Name of a run-time value, or a constant; it broadcasts to the output.
        factor: What a run-time value is multiplied by first.
    """

    value: str | Array
    factor: float = 1.0


@dataclass(frozen=True)
class Candidate:
    """A node that computes `activation(W x + bias + residual)` with constant W.

    Attributes:
        index: Index of the matched node.
        node: Its name.
        op: Its operator: MatMul, Gemm or Conv.
        weight: Dense float32 weight, [out, in] or [out, in, kh, kw].
        weight_key: Name of the weight in the file, and how it is read.
        x: Name of the input value.
        output: Name of the value that the replacement writes.
        bias: Constant float32 [out], or None.
        residual: Name of a value of the output's shape that is added, or None.
        activation: "none" or a key of `activation.KNOWN`, or "clip".
        geometry: For what the convolution operator computes.
        consumed: Indices of all nodes that the replacement stands for.
        before: Nodes between `x` and the operator.
        after: Nodes between the operator and `output`; the residual passes their inverse.
        addend: Added last, in the file's own form; nothing is fused behind it.
        axis: Axis of the outputs in `output`, counted from the end (1: last).
        rank: Rank of `output`, None where it is unknown.
        clip: Bounds of the activation "clip".
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
    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    addend: Addend | None = None
    axis: int = 1
    rank: int | None = None
    clip: tuple[float, float] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight as a layer's: [out, in], [out, in, k] or [out, in, kh, kw]."""
        dims = tuple(int(dim) for dim in self.weight.shape)
        if self.op != "Conv":
            return dims[:2]
        return (*dims[:2], *dims[3:]) if self.rank == 3 else dims

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weight's shape and numbers: equal weights are stored once."""
        content = np.ascontiguousarray(self.weight)
        digest = hashlib.blake2b(str(content.shape).encode(), digest_size=16)
        digest.update(content.data)
        return digest.hexdigest()

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
        chain: Name of the node that it is part of, with others; None where it is a node of its own.
    """

    node: str
    op: str
    shape: tuple[int, ...]
    density: float
    reason: str
    layout: str | None = None
    chain: str | None = None


def float_weight(value: Array | Refused, name: str) -> Array | Refused:
    """A constant as a float32 weight, if it is float32 or float16."""
    if isinstance(value, Refused):
        return value
    if value.dtype not in (np.float32, np.float16):
        return Refused(f"weight {name!r} is {value.dtype}; only float32 and float16 are lowered")
    if value.size == 0:
        return Refused(f"weight {name!r} is empty")
    return value.astype(np.float32, copy=False)


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
    if not isinstance(value, np.ndarray) or value.dtype not in (np.float32, np.float16):
        return None
    if value.ndim > (axis if rank is None else rank):
        return None
    if value.size == 1:
        return np.full(size, value.reshape(()), dtype=np.float32)
    if value.ndim < axis or value.shape[-axis] != size or value.size != size:
        return None
    return np.ascontiguousarray(value.reshape(size), dtype=np.float32)
