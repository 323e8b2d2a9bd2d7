"""Writes the lowered model: packed weights and sparse nodes in, what they replace out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from sparsify.errors import SparsifyError
from sparsify.lowering.attention_fusion import attention_node, find_fusions
from sparsify.lowering.candidate import Candidate
from sparsify.lowering.emission import Emitter, NewConstants
from sparsify.lowering.graph import STANDARD, Graph, reads, walk_subgraphs
from sparsify.lowering.pool_padding import PaddedPool, PoolPadding, block_of_channels, find_padded_pools
from sparsify.runtime import layouts
from sparsify.runtime.layouts import Packed
from sparsify.runtime.session import DOMAIN

VERSION = 1

HALF_ULP = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}
"""What rounding to a type changes at most, as a share of the weight."""

SMALLEST = {"float32": 0.0, "bfloat16": 0.0, "float16": 2.0**-25}
"""What it changes at most where a weight is near the type's smallest."""


class Packer:
    """Packs weights once each, however many nodes or attempts use them.

    Attributes:
        dtype: Number type that weights are stored in, one of `layouts.WEIGHT_DTYPES`.
    """

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype
        self._packed: dict[Hashable, Packed] = {}

    def pack(self, candidate: Candidate, layout: str) -> Packed:
        """Packed form of a candidate's weight, checked against the weight.

        Raises:
            SparsifyError: Unpacking does not give the weight back.
        """
        key = (candidate.fingerprint, candidate.geometry, layout)
        if key not in self._packed:
            self._packed[key] = _pack(candidate, layout, self.dtype)
        return self._packed[key]


def rewrite(
    graph: Graph, chosen: Mapping[int, tuple[Candidate, str]], packer: Packer, *, target: str = "cpu"
) -> onnx.ModelProto:
    """Builds the model in which chosen candidates are sparse operators and attention beside them one node.

    For a CPU, what dense convolutions pool for sparse ones gets as many channels as fill blocks.

    Args:
        graph: Index of the source model, which is not changed.
        chosen: Index of the matched node to its (fused) candidate and layout.
        packer: Where packed weights are kept between calls.
        target: Where the model is to run, "cpu" or "cuda".

    Returns:
        A new model; constants that only replaced nodes used are gone.
    """
    replaced = {index for candidate, _ in chosen.values() for index in candidate.consumed}
    emitter = Emitter(graph, NewConstants(names_in(graph)))
    placed = {max(candidate.consumed): (candidate, layout) for candidate, layout in chosen.values()}
    attention = {match.place: match for match in find_fusions(graph, chosen, target=target).fused}
    padding = PoolPadding(graph, padded_pools(graph, chosen, target=target), emitter.constants)
    padded = padding.indices
    nodes: list[onnx.NodeProto] = []
    for index, node in enumerate(graph.nodes):
        if index in placed:
            candidate, layout = placed[index]
            nodes.extend(emitter.nodes(candidate, packer.pack(candidate, layout)))
        elif index in attention:
            nodes.append(attention_node(attention[index]))
        elif index in padded:
            nodes.extend(padding.nodes(index))
        elif index not in replaced:
            nodes.append(node)
    emitter.infos.extend(padding.infos)
    return _assemble(graph, _drop_dead(graph, nodes, replaced | set(attention) | padded), emitter)


def padded_pools(
    graph: Graph, chosen: Mapping[int, tuple[Candidate, str]], *, target: str = "cpu"
) -> tuple[PaddedPool, ...]:
    """Dense convolutions that get more channels because what they give is pooled, see `pool_padding`."""
    return find_padded_pools(graph, chosen, block_of_channels()) if target == "cpu" else ()


def names_in(graph: Graph) -> set[str]:
    """All names of values in a model, those inside its subgraphs included."""
    names = set(graph.initializers) | set(graph.producer) | set(graph.consumers)
    names |= {value.name for value in graph.model.graph.input}
    for node in graph.nodes:
        for inner in walk_subgraphs(node):
            names |= {name for item in inner.node for name in (*item.input, *item.output)}
            names |= {value.name for value in (*inner.input, *inner.initializer)}
    return names


def _pack(candidate: Candidate, layout: str, dtype: str) -> Packed:
    weight = np.ascontiguousarray(candidate.weight)
    if candidate.geometry is None:
        packed = layouts.pack_linear(weight, layout=layout, dtype=dtype)
    else:
        geometry = candidate.geometry
        packed = layouts.pack_conv(
            weight,
            strides=geometry.strides,
            pads=geometry.pads,
            dilations=geometry.dilations,
            layout=layout,
            dtype=dtype,
        )
    if not np.allclose(layouts.unpack(packed), weight, rtol=HALF_ULP[dtype], atol=SMALLEST[dtype]):
        raise SparsifyError(f"node {candidate.node!r}: its weight does not survive packing as {layout!r}")
    return packed


def _drop_dead(graph: Graph, nodes: Sequence[onnx.NodeProto], replaced: set[int]) -> list[onnx.NodeProto]:
    """Drops what only fed replaced nodes, and steps whose result the next operator takes from before them."""
    gone = [graph.nodes[index] for index in replaced]
    suspects = {name for node in gone for name in (*node.input, *node.output)}
    readers = Counter(name for node in nodes for name in reads(node))
    readers.update(value.name for value in graph.model.graph.output)
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if node.domain in STANDARD and _unread(node, suspects, readers):
            suspects.update(node.input)
            readers.subtract(node.input)
        else:
            kept.append(node)
    return kept[::-1]


def _unread(node: onnx.NodeProto, suspects: set[str], readers: Mapping[str, int]) -> bool:
    outputs = [name for name in node.output if name]
    plain = next(walk_subgraphs(node), None) is None
    return plain and not suspects.isdisjoint(outputs) and not any(readers[name] for name in outputs)


def _assemble(graph: Graph, nodes: list[onnx.NodeProto], emitter: Emitter) -> onnx.ModelProto:
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
    target.output.extend(_shaped(graph, value) for value in source.graph.output)
    target.quantization_annotation.extend(source.graph.quantization_annotation)
    target.metadata_props.extend(source.graph.metadata_props)
    used = {name for node in nodes for name in reads(node)} | {value.name for value in target.output}
    used |= graph.overridable
    target.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in used)
    target.initializer.extend(tensor for name, tensor in emitter.constants.tensors.items() if name in used)
    target.sparse_initializer.extend(
        tensor for tensor in source.graph.sparse_initializer if tensor.values.name in used
    )
    target.value_info.extend(_value_info(graph, nodes, emitter.infos))
    return model


def _value_info(
    graph: Graph, nodes: Sequence[onnx.NodeProto], new: Sequence[onnx.ValueInfoProto]
) -> Iterator[onnx.ValueInfoProto]:
    """Type and shape of every value between nodes, as far as source, inference and emission know them."""
    made = dict.fromkeys(name for node in nodes for name in node.output if name)
    known = {value.name: value for value in new}
    known |= {value.name: value for value in graph.model.graph.value_info}
    listed = {value.name for value in graph.model.graph.output}
    for name in made:
        if name in listed:
            continue
        if name in graph.shapes and name in graph.types and not _has_shape(known.get(name)):
            yield helper.make_tensor_value_info(name, graph.types[name], graph.shapes[name])
        elif name in known:
            yield known[name]


def _shaped(graph: Graph, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """A graph output, with the inferred shape where the source gives none."""
    name = value.name
    if _has_shape(value) or name not in graph.shapes or not value.type.tensor_type.elem_type:
        return value
    return helper.make_tensor_value_info(name, graph.types[name], graph.shapes[name])


def _has_shape(value: onnx.ValueInfoProto | None) -> bool:
    if value is None:
        return False
    return not value.type.HasField("tensor_type") or value.type.tensor_type.HasField("shape")
