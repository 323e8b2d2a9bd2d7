"""Times one node by itself: what stands there now beside every layout that it could have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsify.lowering.candidate import Array, Candidate
from sparsify.lowering.cost import Machine
from sparsify.lowering.graph import Graph
from sparsify.lowering.rewrite import Packer, rewrite
from sparsify.runtime import Session
from sparsify.runtime.bench_provider import PROVIDERS, call_of
from sparsify.runtime.timing import interleave

NODE_SECONDS = 0.15
"""Time for each side of a node's comparison."""

_IR_VERSION = 8


@dataclass(frozen=True)
class NodeTimes:
    """Times of one node on inputs of one size.

    Attributes:
        shape: Shape of the input that it was measured on.
        dense: Median seconds of the nodes that the candidate replaces.
        sparse: Median seconds of the sparse node by layout.
    """

    shape: tuple[int, ...]
    dense: float
    sparse: Mapping[str, float]


def time_node(
    graph: Graph,
    candidate: Candidate,
    layouts: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    packer: Packer,
    *,
    machine: Machine,
) -> NodeTimes | None:
    """Times a node dense and in every layout, in alternating blocks.

    Args:
        graph: Index of the source model.
        candidate: A candidate, fused or not.
        layouts: Layouts to time.
        shapes: Shapes of the graph's values.
        packer: Keeps packed weights.
        machine: Threads to measure with, and where.

    Returns:
        The times, or None where the shape or type of one of its inputs is not known.
    """
    feeds = _feeds(graph, candidate, shapes)
    if feeds is None:
        return None
    dense = _alone(graph, candidate, feeds)
    models = [dense, *(_sparse(dense, candidate, layout, packer) for layout in layouts)]
    providers = PROVIDERS[machine.target]
    sessions = [
        Session(model.SerializeToString(), threads=machine.threads, providers=providers) for model in models
    ]
    calls = [call_of(session, feeds, machine.target) for session in sessions]
    first, *others = (
        timing.median for timing in interleave(calls, seconds=NODE_SECONDS, pause=0.02, minimum=7)
    )
    return NodeTimes(shapes[candidate.x], first, dict(zip(layouts, others, strict=True)))


def _feeds(
    graph: Graph, candidate: Candidate, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array] | None:
    """Random inputs for the nodes that a candidate stands for."""
    nodes = [graph.nodes[index] for index in candidate.consumed]
    made = {name for node in nodes for name in node.output}
    needed = dict.fromkeys(name for node in nodes for name in node.input if name and name not in made)
    generator = np.random.default_rng(0)
    feeds = {}
    for name in needed:
        if isinstance(graph.constant(name), np.ndarray):
            continue
        if name not in shapes or graph.types.get(name) not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            return None
        dtype = helper.tensor_dtype_to_np_dtype(graph.types[name])
        feeds[name] = generator.standard_normal(shapes[name], dtype=np.float32).astype(dtype)
    return feeds if candidate.x in feeds else None


def _alone(graph: Graph, candidate: Candidate, feeds: Mapping[str, Array]) -> onnx.ModelProto:
    """The nodes that a candidate stands for, cut out of the source with their constants."""
    nodes = [graph.nodes[index] for index in sorted(candidate.consumed)]
    constants = []
    for name in dict.fromkeys(name for node in nodes for name in node.input if name):
        value = graph.constant(name)
        if isinstance(value, np.ndarray):
            constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    kind = graph.types.get(candidate.output, TensorProto.FLOAT)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    outputs = [helper.make_tensor_value_info(candidate.output, kind, None)]
    cut = helper.make_graph(nodes, "node", inputs, outputs, constants)
    version = max(graph.model.ir_version, _IR_VERSION)
    return helper.make_model(cut, opset_imports=list(graph.model.opset_import), ir_version=version)


def _sparse(dense: onnx.ModelProto, candidate: Candidate, layout: str, packer: Packer) -> onnx.ModelProto:
    """The same with the sparse operator in the place of the nodes."""
    count = len(candidate.consumed)
    place = sorted(candidate.consumed).index(candidate.index)
    moved = replace(candidate, index=place, consumed=tuple(range(count)))
    return rewrite(Graph(dense), {place: (moved, layout)}, packer)
