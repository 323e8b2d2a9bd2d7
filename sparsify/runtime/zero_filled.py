"""Turns a lowered model back into standard operators on dense weights, with the zeros in place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsify.errors import UnsupportedModelError
from sparsify.runtime import joined, layouts
from sparsify.runtime.attention import ATTENTION, standard_attention
from sparsify.runtime.session import DOMAIN

Array = np.ndarray[Any, np.dtype[Any]]
OPERATORS = ("SparseLinear", "SparseConv", *joined.OPERATORS)


def sparse_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of a model that are ours."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in OPERATORS]


def zero_filled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation in standard operators.

    Args:
        model: A lowered model with its weights loaded.

    Returns:
        A new model without nodes of our domain.

    Raises:
        UnsupportedModelError: The packed weights of a node are no initializers.
    """
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    added: list[onnx.TensorProto] = []
    for node in joined.separated(model.graph.node):
        if node.domain == DOMAIN and node.op_type in OPERATORS:
            expanded, weights = _expand(node, constants)
            nodes.extend(expanded)
            added.extend(weights)
        elif node.domain == DOMAIN and node.op_type == ATTENTION:
            expanded, constants_of = standard_attention(node)
            nodes.extend(expanded)
            added.extend(constants_of)
        else:
            nodes.append(node)
    standard = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del twin.opset_import[:]
    twin.opset_import.extend(standard)
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in twin.graph.output}
    kept = [tensor for tensor in twin.graph.initializer if tensor.name in used]
    del twin.graph.initializer[:]
    twin.graph.initializer.extend([*kept, *added])
    return twin


def _expand(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    x, bias, residual, *packed = node.input
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    activation = attributes.pop("activation").decode()
    weight = _weight(node, attributes, packed, constants)
    stem = f"{node.output[0]}/dense"
    tensors = [numpy_helper.from_array(weight, f"{stem}.weight")]
    build = _Chain(stem)
    if node.op_type == "SparseLinear":
        tensors = [numpy_helper.from_array(np.ascontiguousarray(weight.T), f"{stem}.weight")]
        value = build.add("MatMul", x, tensors[0].name)
        if bias:
            value = build.add("Add", value, bias)
    else:
        geometry = {name: attributes[name] for name in ("kernel_shape", "strides", "pads", "dilations")}
        value = build.add("Conv", x, tensors[0].name, *([bias] if bias else []), **geometry)
    if residual:
        value = build.add("Add", value, residual)
    bounds = tuple(attributes[name] for name in ("clip_min", "clip_max") if name in attributes)
    value = _activate(build, value, activation, bounds, tensors)
    build.rename(value, node.output[0])
    return build.nodes, tensors


class _Chain:
    """Nodes with names of their own."""

    def __init__(self, stem: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._stem = stem

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{self._stem}.{len(self.nodes)}.{op}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def rename(self, old: str, new: str) -> None:
        """Gives the last value the name that the replaced node's output had."""
        for node in self.nodes:
            node.output[:] = [new if name == old else name for name in node.output]


def _activate(
    build: _Chain,
    value: str,
    activation: str,
    bounds: tuple[float, ...],
    tensors: list[onnx.TensorProto],
) -> str:
    def constant(number: float) -> str:
        name = f"{tensors[0].name}.{len(tensors)}"
        tensors.append(numpy_helper.from_array(np.array(number, np.float32), name))
        return name

    if activation == "none":
        return value
    if activation == "relu":
        return build.add("Relu", value)
    if activation == "silu":
        return build.add("Mul", value, build.add("Sigmoid", value))
    if activation == "clip":
        return build.add("Clip", value, *(constant(bound) for bound in bounds))
    if activation == "gelu":
        scaled = build.add("Erf", build.add("Div", value, constant(math.sqrt(2))))
    elif activation == "gelu_tanh":
        cube = build.add("Mul", build.add("Mul", value, value), value)
        inner = build.add("Add", value, build.add("Mul", cube, constant(0.044715)))
        scaled = build.add("Tanh", build.add("Mul", inner, constant(math.sqrt(2 / math.pi))))
    else:
        raise UnsupportedModelError(f"{build.nodes[0].name}: unknown activation {activation!r}")
    gate = build.add("Add", scaled, constant(1.0))
    return build.add("Mul", build.add("Mul", value, gate), constant(0.5))


def _weight(
    node: onnx.NodeProto,
    attributes: Mapping[str, Any],
    packed: list[str],
    constants: Mapping[str, onnx.TensorProto],
) -> Array:
    missing = [name for name in packed if name not in constants]
    if missing:
        raise UnsupportedModelError(f"node {node.name!r}: packed weight {missing[0]!r} is no initializer")
    if node.op_type == "SparseLinear":
        shape = (attributes["out_features"], attributes["in_features"])
    else:
        shape = (attributes["out_channels"], attributes["in_channels"], *attributes["kernel_shape"])
    return layouts.unpack(
        layouts.Packed(
            operator=node.op_type,
            layout=attributes["layout"].decode(),
            shape=shape,
            tensors=tuple(numpy_helper.to_array(constants[name]) for name in packed),
            attributes=dict(attributes),
        )
    )
