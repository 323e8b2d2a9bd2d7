"""One index over an ONNX graph: producers, consumers, constants and known shapes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import Error as ProtobufError  # type: ignore[import-untyped]
from onnx import numpy_helper

from sparsify.errors import UserError
from sparsify.lowering.constants import FOLDED, attribute, constant_node, densify, fold

__all__ = [
    "OUTSIDE",
    "STANDARD",
    "Dim",
    "Graph",
    "Refused",
    "Shape",
    "attribute",
    "captured",
    "reads",
    "walk_subgraphs",
]

Dim = int | str | None
Shape = tuple[Dim, ...]

OUTSIDE = -1
"""Consumer index that stands for a graph output or for a node inside a subgraph."""

STANDARD = ("", "ai.onnx")
"""Names of the standard operators' domain."""

_EPSILON: Mapping[int, float] = {onnx.TensorProto.FLOAT16: 2.0**-10, onnx.TensorProto.BFLOAT16: 2.0**-7}
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
        opset: Version of the standard operators.
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
        versions = [entry.version for entry in model.opset_import if entry.domain in STANDARD]
        self.opset = max(versions, default=1)
        self._values: dict[str, np.ndarray | Refused | None] = {}

    def only_consumer(self, name: str) -> int | None:
        """Index of the single node that reads `name` once, or None."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0] != OUTSIDE else None

    @property
    def epsilon(self) -> float:
        """Epsilon of the coarsest floating-point type that is computed in."""
        coarse = {name: _EPSILON[kind] for name, kind in self.types.items() if kind in _EPSILON}
        given = {value.name for value in self.model.graph.input} - self.overridable
        computed = {name for name in coarse if name in self.producer and self.constant(name) is None}
        return max((epsilon for name, epsilon in coarse.items() if name in given | computed), default=0.0)

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
        """Value of a constant, looked up through the operators of `constants.FOLDED`.

        Returns:
            The array, a refusal where the constant may not be used, None for a run-time value.

        Raises:
            UserError: The constant's bytes do not fit its shape and type.
        """
        if name not in self._values:
            self._values[name] = self._resolve(name)
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
            return self._stored(name)
        if name in self._sparse:
            return densify(self._sparse[name])
        node = self.nodes[self.producer[name]] if name in self.producer else None
        if node is None or node.domain not in STANDARD:
            return None
        if node.op_type == "Constant":
            value = constant_node(node)
            return Refused(f"constant node {node.name!r} holds no plain tensor") if value is None else value
        return self._folded(node) if node.op_type in FOLDED else None

    def _stored(self, name: str) -> np.ndarray:
        try:
            return numpy_helper.to_array(self.initializers[name])
        except (ValueError, TypeError) as error:
            raise UserError(
                f"constant {name!r} of shape {list(self.initializers[name].dims)} is damaged ({error}); "
                "write the model again"
            ) from error

    def _folded(self, node: onnx.NodeProto) -> np.ndarray | Refused | None:
        operands: list[np.ndarray] = []
        refused: Refused | None = None
        for name in node.input:
            value = self.constant(name) if name else None
            if value is None:
                return None
            if isinstance(value, Refused):
                refused = value
            else:
                operands.append(value)
        return refused or (fold(node, operands) if operands else None)


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
    with contextlib.suppress(onnx.shape_inference.InferenceError, RuntimeError, ValueError, ProtobufError):
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
