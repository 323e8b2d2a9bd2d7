"""Writes the lowered model: packed weights and sparse nodes in, what they replace out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsify.errors import SparsifyError
from sparsify.lowering.candidate import Array, Candidate
from sparsify.lowering.graph import Graph, reads
from sparsify.runtime import layouts
from sparsify.runtime.layouts import Packed
from sparsify.runtime.session import DOMAIN

VERSION = 1


class Packer:
    """Packs weights once each, however many nodes or attempts use them."""

    def __init__(self) -> None:
        self._packed: dict[tuple[str, str, str], Packed] = {}

    def pack(self, candidate: Candidate, layout: str) -> Packed:
        """Packed form of a candidate's weight, checked against the weight.

        Raises:
            SparsifyError: Unpacking does not give the weight back.
        """
        key = (*candidate.weight_key, layout)
        if key not in self._packed:
            self._packed[key] = _pack(candidate, layout)
        return self._packed[key]


def rewrite(graph: Graph, chosen: Mapping[int, tuple[Candidate, str]], packer: Packer) -> onnx.ModelProto:
    """Builds the model in which the chosen candidates are sparse operators.

    Args:
        graph: Index of the source model, which is not changed.
        chosen: Index of the matched node to its (fused) candidate and layout.
        packer: Where packed weights are kept between calls.

    Returns:
        A new model; constants that only replaced nodes used are gone.
    """
    replaced = {index for candidate, _ in chosen.values() for index in candidate.consumed}
    taken = set(graph.initializers) | set(graph.producer) | set(graph.consumers)
    constants = NewConstants(taken | {value.name for value in graph.model.graph.input})
    placed = {max(candidate.consumed): (candidate, layout) for candidate, layout in chosen.values()}
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.nodes):
        if index in placed:
            candidate, layout = placed[index]
            nodes.append(sparse_node(candidate, packer.pack(candidate, layout), constants))
        elif index not in replaced:
            nodes.append(node)
    return _assemble(graph, _drop_dead(graph, nodes, replaced), constants)


class NewConstants:
    """New initializers under names that are free.

    Attributes:
        tensors: What was added, by name.
    """

    def __init__(self, taken: Container[str]) -> None:
        self.tensors: dict[str, onnx.TensorProto] = {}
        self._taken = taken
        self._names: dict[Hashable, str] = {}

    def add(self, name: str, value: Array, *, key: Hashable = None) -> str:
        """Stores a constant and returns its name; with a `key`, one of the same key is stored once."""
        if key is not None and key in self._names:
            return self._names[key]
        unique, suffix = name, 0
        while unique in self._taken or unique in self.tensors:
            suffix += 1
            unique = f"{name}.{suffix}"
        self.tensors[unique] = numpy_helper.from_array(np.ascontiguousarray(value), unique)
        if key is not None:
            self._names[key] = unique
        return unique


def _pack(candidate: Candidate, layout: str) -> Packed:
    weight = np.ascontiguousarray(candidate.weight)
    if candidate.geometry is None:
        packed = layouts.pack_linear(weight, layout=layout)
    else:
        geometry = candidate.geometry
        packed = layouts.pack_conv(
            weight,
            strides=geometry.strides,
            pads=geometry.pads,
            dilations=geometry.dilations,
            layout=layout,
        )
    if not np.array_equal(layouts.unpack(packed), weight):
        raise SparsifyError(f"node {candidate.node!r}: its weight does not survive packing as {layout!r}")
    return packed


def sparse_node(candidate: Candidate, packed: Packed, constants: NewConstants) -> onnx.NodeProto:
    """The operator that stands for a candidate; its constants are added to `constants`."""
    bias = "" if candidate.bias is None else constants.add(f"{candidate.node}.bias", candidate.bias)
    key = (*candidate.weight_key, packed.layout)
    weights = [
        constants.add(f"{candidate.weight_key[0]}.{packed.layout}.{i}", tensor, key=(*key, i))
        for i, tensor in enumerate(packed.tensors)
    ]
    attributes: dict[str, Any] = {**packed.attributes, "activation": candidate.activation}
    inputs = [candidate.x, bias, candidate.residual or "", *weights]
    return helper.make_node(
        packed.operator, inputs, [candidate.output], name=candidate.node, domain=DOMAIN, **attributes
    )


def _drop_dead(graph: Graph, nodes: Sequence[onnx.NodeProto], replaced: set[int]) -> list[onnx.NodeProto]:
    """Drops the Identity, Transpose and Constant nodes that only fed replaced nodes."""
    suspects = {name for index in replaced for name in graph.nodes[index].input}
    readers = Counter(name for node in nodes for name in reads(node))
    readers.update(value.name for value in graph.model.graph.output)
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        constant = node.op_type in ("Identity", "Transpose", "Constant") and len(node.output) == 1
        if constant and node.output[0] in suspects and not readers[node.output[0]]:
            suspects.update(node.input)
            readers.subtract(node.input)
        else:
            kept.append(node)
    return kept[::-1]


def _assemble(graph: Graph, nodes: list[onnx.NodeProto], constants: NewConstants) -> onnx.ModelProto:
    source = graph.model
    model = onnx.ModelProto(
        ir_version=source.ir_version,
        producer_name=source.producer_name,
        producer_version=source.producer_version,
        domain=source.domain,
        model_version=source.model_version,
        doc_string=source.doc_string,
    )
    model.metadata_props.extend(source.metadata_props)
    model.functions.extend(source.functions)
    model.opset_import.extend(entry for entry in source.opset_import if entry.domain != DOMAIN)
    model.opset_import.add(domain=DOMAIN, version=VERSION)
    target = model.graph
    target.name, target.doc_string = source.graph.name, source.graph.doc_string
    target.node.extend(nodes)
    target.input.extend(source.graph.input)
    target.output.extend(source.graph.output)
    target.quantization_annotation.extend(source.graph.quantization_annotation)
    target.metadata_props.extend(source.graph.metadata_props)
    used = {name for node in nodes for name in reads(node)} | {value.name for value in target.output}
    used |= graph.overridable
    target.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in used)
    target.initializer.extend(constants.tensors.values())
    target.sparse_initializer.extend(
        tensor for tensor in source.graph.sparse_initializer if tensor.values.name in used
    )
    target.value_info.extend(_value_info(graph, nodes))
    return model


def _value_info(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.ValueInfoProto]:
    """What the source says about values that still exist, and what is known of sparse nodes' results."""
    made = {name for node in nodes for name in node.output}
    listed = {value.name for value in graph.model.graph.output}
    for value in graph.model.graph.value_info:
        listed.add(value.name)
        if value.name in made:
            yield value
    for node in nodes:
        name = node.output[0] if node.output else ""
        if node.domain == DOMAIN and name not in listed and name in graph.shapes:
            yield helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, graph.shapes[name])
