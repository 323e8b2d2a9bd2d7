"""Finds sparse convolutions that stand beside dense ones.

ONNX Runtime keeps what flows between dense convolutions in blocks of channels. A sparse convolution takes and
gives plain NCHW, so wherever it meets a dense one, values are converted that were not before.
"""

from __future__ import annotations

from collections.abc import Container

from sparsify.lowering.graph import OUTSIDE, STANDARD, Graph

_KEEPS_BLOCKS = (
    *("Add", "Sum", "Mul", "Concat", "Identity", "BatchNormalization", "MaxPool", "AveragePool"),
    *("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Tanh"),
)
"""What ONNX Runtime computes on blocks of channels, or may."""

_FAR = 40


def beside_dense(graph: Graph, x: str, output: str, sparse: Container[int]) -> tuple[bool, bool]:
    """Whether a convolution's input comes from dense convolutions, and whether its output goes to some.

    Args:
        graph: The indexed graph.
        x: Name of its input.
        output: Name of its output.
        sparse: Indices of the nodes that become sparse.
    """
    before = _reaches(graph, [x], sparse, forward=False)
    after = _reaches(graph, [output], sparse, forward=True)
    return before, after


def _reaches(graph: Graph, names: list[str], sparse: Container[int], *, forward: bool) -> bool:
    """Whether a dense convolution is found through nodes that keep blocks."""
    seen: set[int] = set()
    while names and len(seen) < _FAR:
        name = names.pop()
        if forward:
            found = [index for index in graph.consumers.get(name, []) if index != OUTSIDE]
        else:
            found = [graph.producer[name]] if name in graph.producer else []
        for index in found:
            node = graph.nodes[index]
            if index in seen or node.domain not in STANDARD:
                continue
            seen.add(index)
            if node.op_type == "Conv" and index not in sparse:
                return True
            if node.op_type in _KEEPS_BLOCKS:
                names.extend(node.output if forward else node.input)
    return False
