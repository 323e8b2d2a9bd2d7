"""Evaluates the operators that stand between a stored constant and the node that uses it.

Exporters leave weights behind Transpose, Reshape and Cast, split over Concat, or multiplied by their mask.
Folding them is what ONNX Runtime does when it opens the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray
T = TypeVar("T")


def attribute(node: onnx.NodeProto, name: str, default: T) -> T:
    """Value of a node's attribute, or `default` where it is absent."""
    for item in node.attribute:
        if item.name == name:
            value: Any = helper.get_attribute_value(item)
            return cast(T, value.decode() if isinstance(value, bytes) else value)
    return default


def densify(tensor: onnx.SparseTensorProto) -> Array:
    """The dense form of a sparse constant."""
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    dense = np.zeros(tuple(tensor.dims), dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def constant_node(node: onnx.NodeProto) -> Array | None:
    """Value of a Constant node, or None where it holds no numbers."""
    for item in node.attribute:
        value = helper.get_attribute_value(item)
        if item.name == "value":
            return numpy_helper.to_array(value)
        if item.name == "sparse_value":
            return densify(value)
        if item.name in ("value_float", "value_floats"):
            return np.asarray(value, dtype=np.float32)
        if item.name in ("value_int", "value_ints"):
            return np.asarray(value, dtype=np.int64)
    return None


def _transpose(node: onnx.NodeProto, operands: Sequence[Array]) -> Array:
    return np.transpose(operands[0], attribute(node, "perm", None))


def _reshape(node: onnx.NodeProto, operands: Sequence[Array]) -> Array:
    value, shape = operands
    sizes = [int(size) for size in shape]
    if not attribute(node, "allowzero", 0):
        sizes = [value.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return value.reshape(sizes)


def _flatten(node: onnx.NodeProto, operands: Sequence[Array]) -> Array:
    axis = attribute(node, "axis", 1)
    rows = int(np.prod(operands[0].shape[:axis], dtype=np.int64))
    return operands[0].reshape(rows, -1)


def _axes(node: onnx.NodeProto, operands: Sequence[Array]) -> tuple[int, ...] | None:
    given = operands[1] if len(operands) > 1 else attribute(node, "axes", None)
    return None if given is None else tuple(int(axis) for axis in given)


def _squeeze(node: onnx.NodeProto, operands: Sequence[Array]) -> Array:
    return np.squeeze(operands[0], _axes(node, operands))


def _unsqueeze(node: onnx.NodeProto, operands: Sequence[Array]) -> Array:
    return np.expand_dims(operands[0], _axes(node, operands) or ())


def _cast(node: onnx.NodeProto, operands: Sequence[Array]) -> Array:
    return operands[0].astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to", 0)))


def _mul(node: onnx.NodeProto, operands: Sequence[Array]) -> Array:
    return np.asarray(operands[0] * operands[1])


def _concat(node: onnx.NodeProto, operands: Sequence[Array]) -> Array:
    return np.concatenate(operands, axis=attribute(node, "axis", 0))


FOLDED: Mapping[str, Callable[[onnx.NodeProto, Sequence[Array]], Array]] = {
    "Identity": lambda _, operands: operands[0],
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Cast": _cast,
    "Mul": _mul,
    "Concat": _concat,
}
"""Operators that constants are looked up through."""


def fold(node: onnx.NodeProto, operands: Sequence[Array]) -> Array | None:
    """Result of a node of `FOLDED` on constants, None where the operands do not fit it."""
    try:
        with np.errstate(all="ignore"):
            return FOLDED[node.op_type](node, operands)
    except (ValueError, TypeError, IndexError, KeyError):
        return None
