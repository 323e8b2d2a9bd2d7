"""One index over an ONNX graph: producers, consumers, constants and known shapes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import onnx
from onnx import numpy_helper

Dim = int | str | None
Shape = tuple[Dim, ...]
T = TypeVar("T")

OUTSIDE = -1
"""Consumer index that stands for a graph output or for a node inside a subgraph."""

_SKELETON_ABOVE = 1024
_INLINE_TYPES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)


@dataclass(frozen=True)
class Refused:
    """Why a value or a node cannot be used.

    Attributes:
        reason: A sentence for the report.
    """

    reason: str


class Graph:
    """Read-only view of the main graph of a model.

    Attributes:
        model: The model that is indexed; it is never changed here.
        nodes: Nodes of the main graph in their (topological) order.
        producer: Value name to the index of the node that makes it.
        consumers: Value name to the indices of its readers, one entry a use, `OUTSIDE` for a graph
            output or a reader inside a subgraph.
        initializers: Constant tensors by name.
        overridable: Initializers that are graph inputs as well.
        shapes: Known shapes, symbolic dimensions by name, unknown ones None.
        types: Known element types (onnx.TensorProto numbers).
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.model = model
        self.nodes = list(graph.node)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.overridable = {value.name for value in graph.input} & set(self.initializers)
        self.producer = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.consumers: dict[str, list[int]] = {}
        for i, node in enumerate(self.nodes):
            for name in node.input:
                self.consumers.setdefault(name, []).append(i)
            for name in captured(node):
                self.consumers.setdefault(name, []).append(OUTSIDE)
        for value in graph.output:
            self.consumers.setdefault(value.name, []).append(OUTSIDE)
        self._sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self.shapes, self.types = _value_types(model)
        self._values: dict[str, np.ndarray | Refused] = {}

    def only_consumer(self, name: str) -> int | None:
        """Index of the single node that reads `name` once, or None."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0] != OUTSIDE else None

    def rank(self, name: str) -> int | None:
        """Rank of a value, or None where it is unknown."""
        shape = self.shapes.get(name)
        return None if shape is None else len(shape)

    def same_shape(self, a: str, b: str) -> bool:
        """Whether two values are known to have equal shapes (equal numbers or equal symbols)."""
        first, second = self.shapes.get(a), self.shapes.get(b)
        if first is None or second is None or None in first:
            return False
        return first == second

    def constant(self, name: str) -> np.ndarray | Refused | None:
        """Value of a constant, looked up through Constant, Identity and Transpose nodes.

        Returns:
            The array, a refusal where the constant may not be used, None for a run-time value.
        """
        if name not in self._values:
            value = self._resolve(name)
            if value is None:
                return None
            self._values[name] = value
        return self._values[name]

    def scalar(self, name: str) -> float | None:
        """Value of a constant with exactly one element, else None."""
        value = self.constant(name)
        if not isinstance(value, np.ndarray) or value.size != 1 or value.dtype.kind not in "fiu":
            return None
        return float(value.reshape(()))

    def _resolve(self, name: str) -> np.ndarray | Refused | None:
        if name in self.overridable:
            return Refused(
                f"initializer {name!r} is a graph input too, so a caller may replace it; "
                "remove it from the graph inputs to have it lowered"
            )
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        if name in self._sparse:
            return _densify(self._sparse[name])
        if name not in self.producer:
            return None
        node = self.nodes[self.producer[name]]
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            return _constant_node(node)
        if node.op_type in ("Identity", "Transpose") and node.domain in ("", "ai.onnx"):
            value = self.constant(node.input[0])
            if isinstance(value, np.ndarray) and node.op_type == "Transpose":
                return np.transpose(value, attribute(node, "perm", None))
            return value
        return None


def attribute(node: onnx.NodeProto, name: str, default: T) -> T:
    """Value of a node's attribute, or `default` where it is absent."""
    for item in node.attribute:
        if item.name == name:
            value: Any = onnx.helper.get_attribute_value(item)
            return cast(T, value.decode() if isinstance(value, bytes) else value)
    return default


def walk_subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Subgraphs held by a node (If, Loop, Scan), those nested inside them included."""
    for item in node.attribute:
        for graph in [item.g] if item.HasField("g") else list(item.graphs):
            yield graph
            for inner in graph.node:
                yield from walk_subgraphs(inner)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of all values that a node reads, those its subgraphs take from outside included."""
    yield from (name for name in node.input if name)
    yield from captured(node)


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node's subgraphs mention, among them all that they take from outside."""
    for graph in walk_subgraphs(node):
        for inner in graph.node:
            yield from (name for name in inner.input if name)
        yield from (value.name for value in graph.output)


def _constant_node(node: onnx.NodeProto) -> np.ndarray | Refused:
    for item in node.attribute:
        value = onnx.helper.get_attribute_value(item)
        if item.name == "value":
            return numpy_helper.to_array(value)
        if item.name == "sparse_value":
            return _densify(value)
        if item.name in ("value_float", "value_floats"):
            return np.asarray(value, dtype=np.float32)
        if item.name in ("value_int", "value_ints"):
            return np.asarray(value, dtype=np.int64)
    return Refused(f"constant node {node.name!r} holds no plain tensor")


def _densify(tensor: onnx.SparseTensorProto) -> np.ndarray:
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    dense = np.zeros(tuple(tensor.dims), dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its large constants: shape inference must not copy gigabytes."""
    graph = model.graph
    light = onnx.ModelProto(ir_version=max(model.ir_version, 4))
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.graph.name = graph.name or "graph"
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    light.graph.value_info.extend(graph.value_info)
    known = {value.name for value in graph.input}
    light.graph.sparse_initializer.extend(graph.sparse_initializer)
    for tensor in graph.initializer:
        if tensor.data_type in _INLINE_TYPES and math.prod(tensor.dims) <= _SKELETON_ABOVE:
            light.graph.initializer.append(tensor)
        elif tensor.name not in known:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def _value_types(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    light = _skeleton(model)
    # where inference fails, what the file itself says about shapes is used
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    shapes: dict[str, Shape] = {}
    types: dict[str, int] = {}
    for value in [*light.graph.input, *light.graph.output, *light.graph.value_info]:
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(_dim(dim) for dim in tensor.shape.dim)
    for constant in model.graph.initializer:
        shapes[constant.name] = tuple(constant.dims)
        types[constant.name] = constant.data_type
    return shapes, types


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None
