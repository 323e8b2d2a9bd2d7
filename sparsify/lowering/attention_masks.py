"""What a mask says that does not depend on the inputs: that it hides nothing, or what comes later."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx

from sparsify.lowering.attention_shapes import shape_of
from sparsify.lowering.constants import Array, attribute
from sparsify.lowering.graph import STANDARD, Dim, Graph

HIDDEN = -1e30
"""What is added to a score that is hidden is at most this; its probability is exactly 0 beside any other."""

_LARGEST = 1 << 24
_DEPTH = 32

_ELEMENTWISE: Mapping[str, Callable[..., Array]] = {
    "Identity": lambda x: x,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Equal": np.equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Where": np.where,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
}


def spread(graph: Graph, name: str, depth: int = _DEPTH) -> Array | None:
    """A constant of the same rank that broadcasts to a value, or None where the value is no such thing.

    A mask often is the same for every sequence of a batch, whose size is only known at run time: then its
    content is constant, and its first dimension 1 here.

    Args:
        graph: The indexed graph.
        name: The value.
        depth: Nodes that may lie between it and constants.
    """
    constant = graph.constant(name)
    if isinstance(constant, np.ndarray):
        return constant
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    if node is None or node.domain not in STANDARD or depth == 0 or not node.input:
        return None
    if node.op_type == "Expand":
        return _expanded(graph, node, depth)
    if node.op_type in _ELEMENTWISE:
        operands = [spread(graph, item, depth - 1) for item in node.input]
        return None if any(operand is None for operand in operands) else _computed(node, operands)
    value = spread(graph, node.input[0], depth - 1)
    if value is None:
        return None
    if node.op_type == "Cast":
        return value.astype(onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "to", 0)))
    if node.op_type == "Trilu":
        return _triangle(graph, node, value)
    if node.op_type == "Unsqueeze":
        axes = graph.constant(node.input[1]) if len(node.input) > 1 else attribute(node, "axes", None)
        if isinstance(axes, np.ndarray | list):
            return np.expand_dims(value, tuple(int(axis) for axis in axes))
    return None


def _expanded(graph: Graph, node: onnx.NodeProto, depth: int) -> Array | None:
    value, rank = spread(graph, node.input[0], depth - 1), graph.rank(node.output[0])
    if value is None or rank is None or rank < value.ndim:
        return None
    return value.reshape((1,) * (rank - value.ndim) + value.shape)


def _triangle(graph: Graph, node: onnx.NodeProto, value: Array) -> Array | None:
    shape = shape_of(graph, node.input[0])
    sizes = [size for size in (shape or ())[-2:] if isinstance(size, int)]
    if (
        (len(node.input) > 1 and node.input[1])
        or len(sizes) != 2
        or math.prod(sizes) > _LARGEST
        or value.ndim < 2
    ):
        return None
    whole = np.broadcast_to(value, (*value.shape[:-2], *sizes))
    return np.triu(whole) if attribute(node, "upper", 1) else np.tril(whole)


def _computed(node: onnx.NodeProto, operands: list[Array | None]) -> Array | None:
    try:
        shape = np.broadcast_shapes(*(operand.shape for operand in operands if operand is not None))
        if np.prod(shape, dtype=np.float64) > _LARGEST:
            return None
        with np.errstate(all="ignore"):
            return np.asarray(_ELEMENTWISE[node.op_type](*operands))
    except (ValueError, TypeError):
        return None


def hides_nothing(visible: Array) -> bool:
    """Whether a mask that is true where a key is visible hides none."""
    return bool(visible.all())


def hides_later(visible: Array, queries: Dim, keys: Dim) -> bool:
    """Whether query i sees exactly the keys up to i, in every sequence and head.

    Args:
        visible: True where a key is visible, broadcasting to [batch, heads, queries, keys].
        queries: Their number.
        keys: Their number.
    """
    if visible.ndim < 2 or visible.shape[-2:] != (queries, keys):
        return False
    return bool((visible == np.tril(np.ones(visible.shape[-2:], dtype=np.bool_))).all())


def visible_by(added: Array) -> Array | None:
    """Where a constant that is added to scores shows keys, or None where it does more than show and hide."""
    if added.dtype.kind != "f":
        return None
    shown, hidden = added == 0.0, added <= HIDDEN
    return shown if bool((shown | hidden).all()) else None
