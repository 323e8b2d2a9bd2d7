"""Decides by measuring: each node against its dense self, then the whole file against its source.

ONNX Runtime treats a dense neighbourhood better than the sum of its nodes (fusions, the NCHWc layout of
convolutions), so nodes that win alone may lose together. The last word is therefore the whole model's: as
long as it is slower than its source, the nodes that gained least are taken back.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsify.lowering.candidate import Array, Candidate
from sparsify.lowering.cost import Decision
from sparsify.lowering.graph import Graph
from sparsify.lowering.model_file import staged
from sparsify.lowering.rewrite import VERSION, NewConstants, Packer, rewrite, sparse_node
from sparsify.runtime import Session
from sparsify.runtime.session import DOMAIN
from sparsify.runtime.timing import interleave

NODE_SECONDS = 0.15
"""Time for each side of a node's comparison."""

FILE_SECONDS = 1.5
"""Time for each side of the whole file's comparison."""

_WORTHWHILE = 0.97
_NOT_SLOWER = 1.0


@dataclass(frozen=True)
class Measured:
    """Times of one node.

    Attributes:
        dense: Median seconds of the nodes that the candidate replaces.
        sparse: Median seconds of the sparse node.
        shape: Shape of the input that it was measured on.
    """

    dense: float
    sparse: float
    shape: tuple[int, ...]

    @property
    def gain(self) -> float:
        """Seconds a call that the sparse node saves."""
        return self.dense - self.sparse

    @property
    def decision(self) -> Decision:
        """Sparse where that is worthwhile, with the times as the reason."""
        times = f"{1e6 * self.sparse:.0f} µs sparse, {1e6 * self.dense:.0f} µs dense on {list(self.shape)}"
        return Decision("csr" if self.sparse < _WORTHWHILE * self.dense else None, f"measured: {times}")


def measure(
    graph: Graph, candidates: Sequence[Candidate], shapes: Mapping[str, tuple[int, ...]], packer: Packer
) -> dict[int, Measured]:
    """Times candidates; those of equal shape, density and fusions are measured once.

    Args:
        graph: Index of the source model.
        candidates: Fused candidates.
        shapes: Input shape by value name; candidates whose input is not in it are left out.
        packer: Keeps packed weights.
    """
    known: dict[tuple[object, ...], Measured] = {}
    measured: dict[int, Measured] = {}
    for candidate in candidates:
        if candidate.x not in shapes:
            continue
        shape = shapes[candidate.x]
        key = (*_signature(candidate), shape)
        if key not in known:
            known[key] = _measure(graph, candidate, shape, packer)
        measured[candidate.index] = known[key]
    return measured


def take_back(
    graph: Graph,
    source: Path,
    chosen: Mapping[int, tuple[Candidate, str]],
    measured: Mapping[int, Measured],
    feeds: Mapping[str, Array],
    packer: Packer,
) -> tuple[dict[int, tuple[Candidate, str]], str]:
    """Takes nodes back until the whole file is not slower than its source.

    Args:
        graph: Index of the source model.
        source: The source file.
        chosen: Fused candidates and layouts by index.
        measured: Times by index.
        feeds: Inputs to time the whole on.
        packer: Keeps packed weights.

    Returns:
        The nodes that stay sparse, and what the last comparison said.
    """
    kept = dict(chosen)
    order = sorted(
        kept, key=lambda index: measured[index].dense - measured[index].sparse if index in measured else 0
    )
    said = "nothing was faster sparse"
    while kept:
        dense, sparse = _compare_files(graph, source, kept, feeds, packer)
        said = f"whole file: {1e3 * sparse:.2f} ms, source {1e3 * dense:.2f} ms"
        if sparse <= _NOT_SLOWER * dense:
            break
        for index in order[: math.ceil(len(order) / 4)]:
            del kept[index]
        order = order[math.ceil(len(order) / 4) :]
    return kept, said


def _signature(candidate: Candidate) -> tuple[object, ...]:
    fused = (candidate.bias is not None, candidate.residual is not None, candidate.activation)
    return (candidate.weight.shape, round(candidate.density, 2), candidate.geometry, *fused)


def _measure(graph: Graph, candidate: Candidate, shape: tuple[int, ...], packer: Packer) -> Measured:
    generator = np.random.default_rng(0)
    feeds = {candidate.x: generator.standard_normal(shape, dtype=np.float32)}
    if candidate.residual is not None:
        feeds[candidate.residual] = generator.standard_normal(
            _output_shape(candidate, shape), dtype=np.float32
        )
    sessions = [
        Session(model.SerializeToString())
        for model in (_dense_alone(graph, candidate, feeds), _sparse_alone(candidate, feeds, packer))
    ]
    calls = [lambda raw=session.raw: raw.run(None, feeds) for session in sessions]
    dense, sparse = interleave(calls, seconds=NODE_SECONDS, pause=0.02)
    return Measured(dense.median, sparse.median, shape)


def _output_shape(candidate: Candidate, shape: tuple[int, ...]) -> tuple[int, ...]:
    outputs = candidate.weight.shape[0]
    if candidate.geometry is None:
        return (*shape[:-1], outputs)
    geometry = candidate.geometry
    spatial = [
        (size + geometry.pads[i] + geometry.pads[i + 2] - geometry.dilations[i] * (taps - 1) - 1)
        // geometry.strides[i]
        + 1
        for i, (size, taps) in enumerate(zip(shape[2:], candidate.weight.shape[2:], strict=True))
    ]
    return (shape[0], outputs, *spatial)


def _dense_alone(graph: Graph, candidate: Candidate, feeds: Mapping[str, Array]) -> onnx.ModelProto:
    """The nodes that a candidate stands for, cut out of the source with their constants."""
    nodes = [graph.nodes[index] for index in sorted(candidate.consumed)]
    made = {name for node in nodes for name in node.output}
    needed = {name for node in nodes for name in node.input if name} - made - set(feeds)
    constants = []
    for name in sorted(needed):
        value = graph.constant(name)
        if isinstance(value, np.ndarray):
            constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return _model(graph.model.opset_import, nodes, feeds, candidate.output, constants)


def _sparse_alone(candidate: Candidate, feeds: Mapping[str, Array], packer: Packer) -> onnx.ModelProto:
    constants = NewConstants({candidate.x, candidate.output, candidate.residual or ""})
    node = sparse_node(candidate, packer.pack(candidate, "csr"), constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, VERSION)]
    return _model(opsets, [node], feeds, candidate.output, list(constants.tensors.values()))


def _model(
    opsets: Sequence[onnx.OperatorSetIdProto],
    nodes: Sequence[onnx.NodeProto],
    feeds: Mapping[str, Array],
    output: str,
    constants: Sequence[onnx.TensorProto],
) -> onnx.ModelProto:
    kind = onnx.TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info(name, kind, value.shape) for name, value in feeds.items()]
    outputs = [helper.make_tensor_value_info(output, kind, None)]
    graph = helper.make_graph(list(nodes), "node", inputs, outputs, list(constants))
    return helper.make_model(graph, opset_imports=list(opsets), ir_version=8)


def _compare_files(
    graph: Graph,
    source: Path,
    chosen: Mapping[int, tuple[Candidate, str]],
    feeds: Mapping[str, Array],
    packer: Packer,
) -> tuple[float, float]:
    """Median seconds of the source and of the file with the chosen nodes sparse."""
    with tempfile.TemporaryDirectory() as folder:
        attempt = Path(folder) / "attempt.onnx"
        with staged(rewrite(graph, chosen, packer), attempt):
            pass
        sessions = [Session(source), Session(attempt)]
        calls = [lambda raw=session.raw: raw.run(None, dict(feeds)) for session in sessions]
        dense, sparse = interleave(calls, seconds=FILE_SECONDS)
    return dense.median, sparse.median
