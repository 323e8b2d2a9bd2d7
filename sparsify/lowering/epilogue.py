"""Pulls what follows a weight-bearing node into it: residual and activation.

Constant scales and offsets are in the weight and the bias already, see `folding`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from sparsify.lowering.activation import find_activation
from sparsify.lowering.candidate import Candidate
from sparsify.lowering.graph import STANDARD, Graph
from sparsify.lowering.steps import TO_HALF, inverse

KERNEL_ACTIVATIONS = frozenset({"relu", "gelu", "gelu_tanh", "silu", "clip"})
"""Activations that the kernels compute; others that are recognised stay nodes."""


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
    if candidate.addend is not None:
        return candidate
    if candidate.residual is None and inverse(candidate.after) is not None:
        candidate = _residual(graph, candidate, taken)
    half = TO_HALF in candidate.after
    activation = find_activation(graph, candidate.output, KERNEL_ACTIVATIONS, half=half)
    if activation is None:
        return candidate
    return replace(
        candidate,
        activation=activation.kind,
        clip=activation.bounds,
        output=activation.output,
        consumed=(*candidate.consumed, *activation.nodes),
    )


def _residual(graph: Graph, candidate: Candidate, taken: Container[int]) -> Candidate:
    index = graph.only_consumer(candidate.output)
    node = None if index is None else graph.nodes[index]
    if index is None or node is None or index in taken:
        return candidate
    if node.op_type != "Add" or node.domain not in STANDARD or len(node.input) != 2:
        return candidate
    others = [name for name in node.input if name != candidate.output]
    if len(others) != 1 or graph.constant(others[0]) is not None:
        return candidate
    if not graph.same_shape(others[0], candidate.output):
        return candidate
    return replace(
        candidate,
        residual=others[0],
        output=node.output[0],
        consumed=(*candidate.consumed, index),
    )
