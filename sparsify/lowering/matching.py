"""Finds every weight-bearing node of a graph, wherever it sits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx

from sparsify.errors import UserError
from sparsify.lowering.candidate import Candidate, LeftAlone
from sparsify.lowering.graph import Graph, attribute, walk_subgraphs
from sparsify.lowering.match_conv import match_conv
from sparsify.lowering.match_linear import match_gemm, match_matmul
from sparsify.runtime.session import DOMAIN

Matcher = Callable[[Graph, int, str], Candidate | LeftAlone | None]

MATCHERS: Mapping[str, Matcher] = {"MatMul": match_matmul, "Gemm": match_gemm, "Conv": match_conv}
"""The matcher of each operator that carries a weight."""

_QUANTIZED = ("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger")
_STANDARD = ("", "ai.onnx")


def match_all(graph: Graph) -> list[Candidate | LeftAlone]:
    """Every node with a constant weight, as a candidate or with the reason against it.

    Raises:
        UserError: A weight that could be lowered holds NaN or infinity.
    """
    found: list[Candidate | LeftAlone] = []
    for index, node in enumerate(graph.nodes):
        name = node.name or (node.output[0] if node.output else f"#{index}")
        match = _match(graph, index, name)
        if isinstance(match, Candidate) and not np.isfinite(match.weight).all():
            raise UserError(
                f"node {name!r}: its weight {node.input[1]!r} holds NaN or infinity; "
                "the model was damaged in training or conversion, write it again"
            )
        if match is not None:
            found.append(match)
        found.extend(_inside(node, name))
    for function in graph.model.functions:
        found.extend(_unreachable(function.node, f"inside the function {function.name!r}"))
    return found


def _match(graph: Graph, index: int, name: str) -> Candidate | LeftAlone | None:
    node = graph.nodes[index]
    if node.domain == DOMAIN:
        return LeftAlone(
            name, node.op_type, (), 1.0, "sparse already", layout=attribute(node, "layout", "csr")
        )
    if node.domain not in _STANDARD:
        return None
    if node.op_type in _QUANTIZED:
        return LeftAlone(name, node.op_type, (), 1.0, "an integer operator; only float32 is lowered")
    if node.op_type not in MATCHERS:
        return None
    match = MATCHERS[node.op_type](graph, index, name)
    if match is None and _dequantized(graph, node):
        return LeftAlone(name, node.op_type, (), 1.0, "the weight is quantized (DequantizeLinear)")
    return match


def _dequantized(graph: Graph, node: onnx.NodeProto) -> bool:
    for name in node.input[1:2]:
        producer = graph.nodes[graph.producer[name]] if name in graph.producer else None
        while producer is not None and producer.op_type in ("Identity", "Transpose"):
            source = producer.input[0]
            producer = graph.nodes[graph.producer[source]] if source in graph.producer else None
        if producer is not None and producer.op_type == "DequantizeLinear":
            return graph.constant(producer.input[0]) is not None
    return False


def _inside(node: onnx.NodeProto, name: str) -> Iterator[LeftAlone]:
    for inner in walk_subgraphs(node):
        yield from _unreachable(inner.node, f"inside a subgraph of {node.op_type} node {name!r}")


def _unreachable(nodes: Iterable[onnx.NodeProto], where: str) -> Iterator[LeftAlone]:
    for node in nodes:
        if node.op_type in MATCHERS and node.domain in _STANDARD:
            yield LeftAlone(node.name or node.output[0], node.op_type, (), 1.0, where)
