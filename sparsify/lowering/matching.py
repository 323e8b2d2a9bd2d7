"""Finds every weight-bearing node of a graph, wherever it sits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx

from sparsify.errors import UserError
from sparsify.lowering.candidate import Candidate, LeftAlone
from sparsify.lowering.folding import fold_affine
from sparsify.lowering.graph import STANDARD, Graph, Refused, attribute, walk_subgraphs
from sparsify.lowering.match_conv import match_conv
from sparsify.lowering.match_linear import match_gemm, match_matmul
from sparsify.runtime.attention import ATTENTION
from sparsify.runtime.joined import is_joined, separate
from sparsify.runtime.session import DOMAIN

Matcher = Callable[[Graph, int, str], Candidate | LeftAlone | None]

MATCHERS: Mapping[str, Matcher] = {"MatMul": match_matmul, "Gemm": match_gemm, "Conv": match_conv}
"""The matcher of each operator that carries a weight."""

_INTEGER = "an integer operator; only float32 and float16 are lowered"
_FUSED = "an operator that ONNX Runtime's optimizer wrote; lower the file that it was made from"
_LEFT: Mapping[tuple[str, str], str] = {
    **{("", op): _INTEGER for op in ("QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger")},
    **{("", op): "recurrent; only MatMul, Gemm and Conv are lowered" for op in ("LSTM", "GRU", "RNN")},
    ("", "ConvTranspose"): "a transposed convolution; only MatMul, Gemm and Conv are lowered",
    ("", "Einsum"): "a general product; only MatMul, Gemm and Conv are lowered",
    **{
        ("com.microsoft", op): _INTEGER
        for op in ("MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm")
    },
    **{
        ("com.microsoft", op): _FUSED
        for op in ("FusedMatMul", "FusedGemm", "FusedConv", "Attention", "TransposeMatMul")
    },
    ("com.microsoft.nchwc", "Conv"): _FUSED,
}
"""Reason against operators that carry a weight and have no matcher, by domain and name."""

_RESHAPING = ("Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast")


def match_all(graph: Graph) -> list[Candidate | LeftAlone]:
    """Every node with a constant weight, as a candidate or with the reason against it.

    Raises:
        UserError: A weight that could be lowered holds NaN or infinity, or a node lacks its inputs.
    """
    found: list[Candidate | LeftAlone] = []
    for index, node in enumerate(graph.nodes):
        name = node.name or (node.output[0] if node.output else f"#{index}")
        if is_joined(node):
            found.extend(_sparse_already(part, part.name, name) for part in separate(node))
            continue
        match = _match(graph, index, name)
        if isinstance(match, Candidate):
            _check_finite(graph, match)
            match = fold_affine(graph, match)
        if match is not None:
            found.append(match)
        found.extend(_inside(node, name))
    for function in graph.model.functions:
        found.extend(_unreachable(function.node, f"inside the function {function.name!r}"))
    return found


def _check_finite(graph: Graph, match: Candidate) -> None:
    if not np.isfinite(match.weight).all():
        raise UserError(
            f"node {match.node!r}: its weight {match.weight_key[0]!r} holds NaN or infinity; "
            "the model was damaged in training or conversion, write it again"
        )


def _match(graph: Graph, index: int, name: str) -> Candidate | LeftAlone | None:
    node = graph.nodes[index]
    if node.domain == DOMAIN:
        if node.op_type == ATTENTION:
            return None
        return _sparse_already(node, name)
    reason = _LEFT.get(("" if node.domain in STANDARD else node.domain, node.op_type))
    if reason is not None:
        return _left(graph, node, name, reason)
    if node.domain not in STANDARD or node.op_type not in MATCHERS:
        return None
    if len(node.input) < 2:
        raise UserError(
            f"node {name!r}: {node.op_type} needs two inputs; the model is damaged, export it again"
        )
    match = MATCHERS[node.op_type](graph, index, name)
    if match is None and any(_dequantized(graph, value) for value in node.input[:2]):
        return LeftAlone(name, node.op_type, (), 1.0, "the weight is quantized (DequantizeLinear)")
    return match


def _sparse_already(node: onnx.NodeProto, name: str, chain: str | None = None) -> LeftAlone:
    layout = attribute(node, "layout", "csr")
    return LeftAlone(name, node.op_type, (), 1.0, "sparse already", layout=layout, chain=chain)


def _left(graph: Graph, node: onnx.NodeProto, name: str, reason: str) -> LeftAlone | None:
    """The largest constant as the weight; None where there is none, so nothing that zeros could save."""
    values = [graph.constant(item) for item in node.input if item]
    weights = [value for value in values if isinstance(value, np.ndarray) and value.ndim > 1]
    if not weights:
        held = reason == _INTEGER or any(isinstance(value, Refused) for value in values)
        return LeftAlone(name, node.op_type, (), 1.0, reason) if held else None
    weight = max(weights, key=lambda value: value.size)
    density = float(np.count_nonzero(weight)) / max(1, weight.size)
    return LeftAlone(name, node.op_type, tuple(weight.shape), density, reason)


def _dequantized(graph: Graph, name: str) -> bool:
    """Whether a value is a constant behind DequantizeLinear, quantized in the file or just before."""
    while name in graph.producer:
        producer = graph.nodes[graph.producer[name]]
        if producer.op_type == "DequantizeLinear":
            source = producer.input[0]
            quantizer = graph.nodes[graph.producer[source]] if source in graph.producer else None
            if quantizer is not None and quantizer.op_type == "QuantizeLinear":
                source = quantizer.input[0]
            return graph.constant(source) is not None
        if producer.op_type not in _RESHAPING:
            return False
        name = producer.input[0]
    return False


def _inside(node: onnx.NodeProto, name: str) -> Iterator[LeftAlone]:
    for inner in walk_subgraphs(node):
        yield from _unreachable(inner.node, f"inside a subgraph of {node.op_type} node {name!r}")


def _unreachable(nodes: Iterable[onnx.NodeProto], where: str) -> Iterator[LeftAlone]:
    for node in nodes:
        if node.op_type in MATCHERS and node.domain in STANDARD:
            yield LeftAlone(node.name or node.output[0], node.op_type, (), 1.0, where)
