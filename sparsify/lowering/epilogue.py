"""Pulls what follows a weight-bearing node into it: BatchNorm, bias, residual, activation.

Folding in BatchNorm: y = γ (W x + b − μ) / √(σ² + ε) + β is a convolution with weight W·γ/√(σ² + ε) per
output channel and bias β + (b − μ)·γ/√(σ² + ε).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

import numpy as np
import onnx

from sparsify.lowering.activation import find_activation
from sparsify.lowering.candidate import Candidate, vector_of
from sparsify.lowering.graph import Graph, attribute


def fuse(graph: Graph, candidate: Candidate, taken: Container[int] = ()) -> Candidate:
    """Extends a candidate by the nodes that follow it, as far as one kernel computes them.

    A node is taken only where it is the single reader of what precedes it and that value is no graph
    output, so nothing else loses its input.

    Args:
        graph: The indexed graph.
        candidate: As matched.
        taken: Indices of nodes that other candidates have taken in.

    Returns:
        A candidate with the same input whose output is the last value that was taken in.
    """
    if candidate.residual is None:
        candidate = _batch_norm(graph, candidate)
        candidate = _bias(graph, candidate)
        candidate = _residual(graph, candidate, taken)
    activation = find_activation(graph, candidate.output)
    if activation is None:
        return candidate
    return replace(
        candidate,
        activation=activation.kind,
        output=activation.output,
        consumed=(*candidate.consumed, *activation.nodes),
    )


def _next(graph: Graph, candidate: Candidate, op: str) -> tuple[int, onnx.NodeProto] | None:
    index = graph.only_consumer(candidate.output)
    if index is None:
        return None
    node = graph.nodes[index]
    return (index, node) if node.op_type == op and node.domain in ("", "ai.onnx") else None


def _batch_norm(graph: Graph, candidate: Candidate) -> Candidate:
    found = _next(graph, candidate, "BatchNormalization") if candidate.geometry else None
    if found is None:
        return candidate
    index, node = found
    outputs = candidate.weight.shape[0]
    vectors = [vector_of(graph.constant(name), outputs, axis=1, rank=1) for name in node.input[1:5]]
    if attribute(node, "training_mode", 0) or len([name for name in node.output if name]) != 1:
        return candidate
    if node.input[0] != candidate.output or any(vector is None for vector in vectors):
        return candidate
    gamma, beta, mean, variance = (np.asarray(vector, dtype=np.float64) for vector in vectors)
    factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    bias = np.zeros(outputs) if candidate.bias is None else candidate.bias.astype(np.float64)
    weight = candidate.weight * factor[:, None, None, None]
    return replace(
        candidate,
        weight=weight.astype(np.float32),
        weight_key=(candidate.weight_key[0], f"{candidate.weight_key[1]} {node.output[0]}"),
        bias=(beta + (bias - mean) * factor).astype(np.float32),
        output=node.output[0],
        consumed=(*candidate.consumed, index),
    )


def _other(node: onnx.NodeProto, name: str) -> str | None:
    others = [item for item in node.input if item != name]
    return others[0] if len(others) == 1 and len(node.input) == 2 else None


def _bias(graph: Graph, candidate: Candidate) -> Candidate:
    found = _next(graph, candidate, "Add")
    other = _other(found[1], candidate.output) if found else None
    if found is None or other is None:
        return candidate
    rank = 4 if candidate.geometry else graph.rank(candidate.output)
    axis = 3 if candidate.geometry else 1
    vector = vector_of(graph.constant(other), candidate.weight.shape[0], axis=axis, rank=rank)
    if vector is None:
        return candidate
    return replace(
        candidate,
        bias=vector if candidate.bias is None else candidate.bias + vector,
        output=found[1].output[0],
        consumed=(*candidate.consumed, found[0]),
    )


def _residual(graph: Graph, candidate: Candidate, taken: Container[int]) -> Candidate:
    found = _next(graph, candidate, "Add")
    other = _other(found[1], candidate.output) if found else None
    if found is None or other is None or graph.constant(other) is not None:
        return candidate
    if found[0] in taken or not graph.same_shape(other, candidate.output):
        return candidate
    return replace(
        candidate,
        residual=other,
        output=found[1].output[0],
        consumed=(*candidate.consumed, found[0]),
    )
