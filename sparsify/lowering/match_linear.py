"""Matches MatMul and Gemm with one constant operand.

A constant right operand is a linear layer. With the constant on the left, Y = W · X has its inputs in the
last axis but one of X, as a 1×1 convolution has its channels: X [n, in, columns] is X [n, in, 1, columns].
A single column, X [n, in, 1], is a linear layer's X [n, in].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from sparsify.lowering.candidate import (
    Addend,
    Array,
    Candidate,
    ConvGeometry,
    LeftAlone,
    float_weight,
    vector_of,
)
from sparsify.lowering.graph import Graph, Refused, attribute
from sparsify.lowering.steps import TO_FLOAT, TO_HALF, Step, inverse

_TURN = Step("Transpose", (1, 0))
_POINT = ConvGeometry((1, 1), (0, 0, 0, 0), (1, 1))
_ROW = Step("Unsqueeze", (2,))
_ONE_ROW = Step("Unsqueeze", (0, 2))
_BOTH = "both operands are constant; ONNX Runtime computes the product when it opens the file"


@dataclass(frozen=True)
class _Form:
    """How the operator sees the file's values; the fields are those of `Candidate`."""

    before: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    geometry: ConvGeometry | None = None
    axis: int = 1


def match_matmul(graph: Graph, index: int, name: str) -> Candidate | LeftAlone | None:
    """Reads `Y = X · B` with B [in, out] constant, or `Y = A · X` with A [out, in] constant.

    Args:
        graph: The indexed graph.
        index: Index of a MatMul node.
        name: Name to report it by.

    Returns:
        A candidate, the reason against it, or None where both operands are run-time values.
    """
    node = graph.nodes[index]
    left, right = (graph.constant(item) for item in node.input)
    raw = left if right is None else right
    if raw is None:
        return None
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return _left(name, "MatMul", right, _BOTH)
    stored, x = node.input if right is None else node.input[::-1]
    weight = float_weight(raw, stored)
    rank = graph.rank(x)
    matrix = weight if isinstance(weight, Refused) else _matrix(weight, rank)
    form = _Form() if right is not None or rank == 1 else _columns(graph, x, matrix)
    if isinstance(matrix, Refused) or isinstance(form, Refused):
        return _left(name, "MatMul", raw, _reason(matrix, form))
    dense = matrix if right is None else matrix.T
    made = _candidate(graph, index, name, dense, form, x=x, stored=stored, half=_is_half(raw))
    return replace(made, rank=graph.rank(made.output))


def match_gemm(graph: Graph, index: int, name: str) -> Candidate | LeftAlone | None:
    """Reads `Y = alpha · A' · B' + beta · C` with A or B constant.

    alpha goes into the weight, beta into the bias. A C that is no bias becomes the residual where it has the
    output's shape, else it is added behind the operator.
    """
    node = graph.nodes[index]
    left, right = (graph.constant(item) for item in node.input[:2])
    raw = left if right is None else right
    if raw is None:
        return None
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return _left(name, "Gemm", right, _BOTH)
    stored, x = (node.input[0], node.input[1]) if right is None else (node.input[1], node.input[0])
    weight = float_weight(raw, stored)
    matrix = weight if isinstance(weight, Refused) else _matrix(weight, 2)
    if isinstance(matrix, Refused):
        return _left(name, "Gemm", raw, matrix.reason)
    turned_a, turned_b = (bool(attribute(node, flag, 0)) for flag in ("transA", "transB"))
    if right is not None:
        dense, form = matrix if turned_b else matrix.T, _Form(before=(_TURN,) if turned_a else ())
    elif turned_b:
        dense, form = matrix.T if turned_a else matrix, _Form(after=(_TURN,), axis=2)
    else:
        single = graph.shapes.get(x, (None,))[-1] == 1
        dense, form = matrix.T if turned_a else matrix, _single(1) if single else _lifted(_ONE_ROW)
    alpha = attribute(node, "alpha", 1.0)
    dense = dense if alpha == 1.0 else dense * np.float32(alpha)
    made = _candidate(graph, index, name, dense, form, x=x, stored=stored, half=_is_half(raw))
    return _with_addend(graph, replace(made, rank=2))


def _candidate(
    graph: Graph, index: int, name: str, dense: Array, form: _Form, *, x: str, stored: str, half: bool
) -> Candidate:
    node = graph.nodes[index]
    return Candidate(
        index=index,
        node=name,
        op=node.op_type,
        weight=dense if form.geometry is None else dense[:, :, None, None],
        weight_key=(stored, node.op_type),
        x=x,
        output=node.output[0],
        geometry=form.geometry,
        consumed=(index,),
        before=(TO_FLOAT, *form.before) if half else form.before,
        after=(*form.after, TO_HALF) if half else form.after,
        axis=form.axis,
    )


def _with_addend(graph: Graph, candidate: Candidate) -> Candidate:
    node = graph.nodes[candidate.index]
    beta = attribute(node, "beta", 1.0)
    if len(node.input) < 3 or not node.input[2] or beta == 0.0:
        return candidate
    name = node.input[2]
    value = graph.constant(name)
    if isinstance(value, np.ndarray):
        bias = vector_of(value, candidate.weight.shape[0], axis=candidate.axis, rank=2)
        if bias is not None:
            return replace(candidate, bias=bias if beta == 1.0 else bias * np.float32(beta))
        return replace(candidate, addend=Addend((value * beta).astype(value.dtype)))
    if beta == 1.0 and graph.same_shape(name, node.output[0]) and inverse(candidate.after) is not None:
        return replace(candidate, residual=name)
    return replace(candidate, addend=Addend(name, beta))


def _matrix(weight: Array, rank: int | None) -> Array | Refused:
    """The weight as a matrix; leading axes of size 1 fall away where they do not enlarge the result."""
    if weight.ndim == 2:
        return weight
    if 2 < weight.ndim <= (rank or 0) and math.prod(weight.shape[:-2]) == 1:
        return weight.reshape(weight.shape[-2:])
    return Refused(f"the weight has {weight.ndim} dimensions, not 2")


def _columns(graph: Graph, x: str, matrix: Array | Refused) -> _Form | Refused:
    """Form of `W · X` for X of the rank that the file says."""
    shape = graph.shapes.get(x)
    if isinstance(matrix, Refused) or shape is None:
        return Refused("the constant is the left operand, and the other's rank is not in the file")
    if shape[-1] == 1:
        return _single(len(shape) - 1)
    if len(shape) == 2:
        return _lifted(_ONE_ROW)
    if len(shape) == 3:
        return _lifted(_ROW)
    sizes = [dim if isinstance(dim, int) else -1 for dim in (*shape[:-2], shape[-1])]
    if sizes.count(-1) > 1 or 0 in sizes:
        return Refused("the constant is the left operand, and the other's sizes are not in the file")
    outputs, inputs = matrix.shape
    batch = -1 if -1 in sizes[:-1] else math.prod(sizes[:-1])
    return _Form(
        before=(Step("Reshape", (batch, inputs, 1, sizes[-1])),),
        after=(Step("Reshape", (*sizes[:-1], outputs, sizes[-1])),),
        geometry=_POINT,
        axis=2,
    )


def _lifted(step: Step) -> _Form:
    return _Form(before=(step,), after=inverse((step,)) or (), geometry=_POINT, axis=2)


def _single(axis: int) -> _Form:
    step = Step("Squeeze", (axis,))
    return _Form(before=(step,), after=inverse((step,)) or (), axis=2)


def _is_half(raw: Array | Refused) -> bool:
    return isinstance(raw, np.ndarray) and raw.dtype == np.float16


def _reason(*outcomes: object) -> str:
    return next(item.reason for item in outcomes if isinstance(item, Refused))


def _left(name: str, op: str, value: Array | Refused, reason: str) -> LeftAlone:
    if isinstance(value, Refused):
        return LeftAlone(name, op, (), 1.0, reason)
    density = float(np.count_nonzero(value)) / max(1, value.size)
    return LeftAlone(name, op, tuple(value.shape), density, reason)
