"""Matches MatMul and Gemm with a constant right operand."""

from __future__ import annotations

import numpy as np
import onnx

from sparsify.lowering.candidate import Array, Candidate, LeftAlone, float_weight, vector_of
from sparsify.lowering.graph import Graph, Refused, attribute


def match_matmul(graph: Graph, index: int, name: str) -> Candidate | LeftAlone | None:
    """Reads `Y = X · B` with B [in, out] constant as a linear layer.

    Args:
        graph: The indexed graph.
        index: Index of a MatMul node.
        name: Name to report it by.

    Returns:
        A candidate, the reason against it, or None where both operands are run-time values.
    """
    node = graph.nodes[index]
    left, right = (graph.constant(item) for item in node.input)
    if right is None:
        return None if left is None else _left(name, "MatMul", left, "the constant is the left operand")
    weight = float_weight(right, node.input[1])
    if isinstance(weight, Refused):
        return _left(name, "MatMul", right, weight.reason)
    if weight.ndim != 2:
        return _left(name, "MatMul", weight, f"the weight has {weight.ndim} dimensions, not 2")
    rank = graph.rank(node.input[0])
    if rank is not None and rank < 2:
        return _left(name, "MatMul", weight, "the input is a vector")
    return Candidate(
        index=index,
        node=name,
        op="MatMul",
        weight=weight.T,
        weight_key=(node.input[1], "transposed"),
        x=node.input[0],
        output=node.output[0],
        consumed=(index,),
    )


def match_gemm(graph: Graph, index: int, name: str) -> Candidate | LeftAlone | None:
    """Reads `Y = alpha · A · B' + beta · C` with B constant as a linear layer.

    alpha goes into the weight, beta into the bias; a C that is a run-time value of the output's shape
    becomes the residual.
    """
    node = graph.nodes[index]
    raw = graph.constant(node.input[1])
    if raw is None:
        left = graph.constant(node.input[0])
        return None if left is None else _left(name, "Gemm", left, "the constant is the left operand")
    weight = float_weight(raw, node.input[1])
    if isinstance(weight, Refused):
        return _left(name, "Gemm", raw, weight.reason)
    if attribute(node, "transA", 0):
        return _left(name, "Gemm", weight, "the input is transposed (transA = 1)")
    transposed = bool(attribute(node, "transB", 0))
    alpha = attribute(node, "alpha", 1.0)
    dense = weight if transposed else weight.T
    bias, residual = _addend(graph, node, dense.shape[0])
    if isinstance(bias, Refused):
        return _left(name, "Gemm", weight, bias.reason)
    return Candidate(
        index=index,
        node=name,
        op="Gemm",
        weight=dense if alpha == 1.0 else dense * np.float32(alpha),
        weight_key=(node.input[1], f"{'' if transposed else 'transposed'} x{alpha}"),
        x=node.input[0],
        output=node.output[0],
        bias=bias,
        residual=residual,
        consumed=(index,),
    )


def _addend(graph: Graph, node: onnx.NodeProto, outputs: int) -> tuple[Array | Refused | None, str | None]:
    beta = attribute(node, "beta", 1.0)
    if len(node.input) < 3 or not node.input[2] or beta == 0.0:
        return None, None
    name = node.input[2]
    value = graph.constant(name)
    if value is None:
        if beta == 1.0 and graph.same_shape(name, node.output[0]):
            return None, name
        return Refused("C is a run-time value that is scaled or broadcast"), None
    bias = vector_of(value, outputs, axis=1, rank=2)
    if bias is None:
        return Refused("C is a constant that varies along the batch"), None
    return (bias if beta == 1.0 else bias * np.float32(beta)), None


def _left(name: str, op: str, value: Array | Refused, reason: str) -> LeftAlone:
    if isinstance(value, Refused):
        return LeftAlone(name, op, (), 1.0, reason)
    density = float(np.count_nonzero(value)) / max(1, value.size)
    return LeftAlone(name, op, tuple(value.shape), density, reason)
