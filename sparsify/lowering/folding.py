"""Folds constant scales and offsets behind a weight-bearing node into its weight and bias.

For every output channel, y = (W x + b) · f + o is a node with weight W · f and bias b · f + o:

    BatchNormalization  f = γ / √(σ² + ε), o = β − μ · f
    Mul, Div            f = c, 1 / c
    Add, Sub            o = c, −c   (c − y: f = −1, o = c)

It happens before anything is decided, so the decision is made about the weight that will be stored.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from sparsify.lowering.candidate import Array, Candidate, vector_of
from sparsify.lowering.graph import STANDARD, Graph, attribute

_Affine = tuple[Array | None, Array | None]


def fold_affine(graph: Graph, candidate: Candidate) -> Candidate:
    """Takes in the nodes that follow, as long as they scale or shift every output channel by constants.

    A node is taken only where it is the single reader of what precedes it and that value is no graph output.

    Args:
        graph: The indexed graph.
        candidate: As matched.
    """
    while candidate.residual is None and candidate.addend is None:
        index = graph.only_consumer(candidate.output)
        node = None if index is None else graph.nodes[index]
        if index is None or node is None or node.domain not in STANDARD:
            return candidate
        affine = _affine(graph, candidate, node)
        folded = None if affine is None else _folded(candidate, index, node, *affine)
        if folded is None:
            return candidate
        candidate = folded
    return candidate


def _affine(graph: Graph, candidate: Candidate, node: onnx.NodeProto) -> _Affine | None:
    """Factor and offset of a node, float64 [out] or None for 1 and 0; None where it is neither."""
    if node.op_type == "BatchNormalization":
        return _batch_norm(graph, candidate, node)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.input) != 2:
        return None
    first = node.input[0] == candidate.output
    vector = _vector(graph, candidate, node.input[1 if first else 0])
    if vector is None or (node.op_type == "Div" and not first):
        return None
    if node.op_type == "Add":
        return None, vector
    if node.op_type == "Sub":
        return (None, -vector) if first else (np.full_like(vector, -1.0), vector)
    with np.errstate(divide="ignore"):
        return (vector if node.op_type == "Mul" else 1.0 / vector), None


def _batch_norm(graph: Graph, candidate: Candidate, node: onnx.NodeProto) -> _Affine | None:
    outputs = candidate.weight.shape[0]
    channels_second = candidate.rank is not None and candidate.rank - candidate.axis == 1
    if not channels_second or attribute(node, "training_mode", 0) or node.input[0] != candidate.output:
        return None
    if len([name for name in node.output if name]) != 1:
        return None
    constants = [vector_of(graph.constant(name), outputs, axis=1, rank=1) for name in node.input[1:5]]
    vectors = [vector.astype(np.float64) for vector in constants if vector is not None]
    if len(vectors) != 4:
        return None
    gamma, beta, mean, variance = vectors
    factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return factor, beta - mean * factor


def _vector(graph: Graph, candidate: Candidate, name: str) -> Array | None:
    value = graph.constant(name)
    vector = vector_of(value, candidate.weight.shape[0], axis=candidate.axis, rank=candidate.rank)
    return None if vector is None else vector.astype(np.float64)


def _folded(
    candidate: Candidate, index: int, node: onnx.NodeProto, factor: Array | None, offset: Array | None
) -> Candidate | None:
    weight, bias = candidate.weight, candidate.bias
    with np.errstate(all="ignore"):
        if factor is not None:
            scale = factor.reshape(-1, *(1 for _ in weight.shape[1:]))
            weight = (weight * scale).astype(np.float32)
            bias = None if bias is None else (bias * factor).astype(np.float32)
        if offset is not None:
            bias = (offset if bias is None else bias + offset).astype(np.float32)
    if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
        return None
    return replace(
        candidate,
        weight=weight,
        bias=bias,
        weight_key=(candidate.weight_key[0], f"{candidate.weight_key[1]} {node.output[0]}"),
        output=node.output[0],
        consumed=(*candidate.consumed, index),
    )
