"""Recognises activation functions by what they compute, not by how they are spelled.

Exporters write GELU as one node, as x·½·(1 + erf(x/√2)) in any association, or as its tanh form. So the
elementwise nodes that hang on one value, with scalar constants as their only other inputs, are gathered
until their last output is all that the rest of the graph sees; then that region is evaluated on sample
points and compared with the activations that the kernels know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from sparsify.lowering.graph import OUTSIDE, Graph, attribute

Array = np.ndarray

_MAX_NODES = 12
_SAMPLES = np.concatenate([np.linspace(-8.0, 8.0, 161), [-100.0, -30.0, 30.0, 100.0]])
_TOLERANCE = 2e-6  # constants such as 1/√2 are stored as float32


def _erf(x: Array) -> Array:
    return np.array([math.erf(item) for item in x])


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


KNOWN: Mapping[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
}
"""Activations of the sparse operators, as float64 functions."""

_UNARY: Mapping[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x,
    "Relu": KNOWN["relu"],
    "Erf": _erf,
    "Tanh": np.tanh,
    "Neg": np.negative,
    "Abs": np.abs,
    "Exp": np.exp,
    "Sigmoid": lambda x: 0.5 * (1.0 + np.tanh(0.5 * x)),
}
_BINARY: Mapping[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Max": np.maximum,
    "Min": np.minimum,
}


@dataclass(frozen=True)
class Activation:
    """An activation found in the graph.

    Attributes:
        kind: A key of `KNOWN`.
        nodes: Indices of the nodes that compute it.
        output: Name of its result.
    """

    kind: str
    nodes: tuple[int, ...]
    output: str


def find_activation(graph: Graph, value: str) -> Activation | None:
    """The activation that all readers of `value` together compute, if it is a known one.

    Args:
        graph: The indexed graph.
        value: Name of the pre-activation.
    """
    known: dict[str, Array] = {value: _SAMPLES}
    taken: list[int] = []
    frontier = set(graph.consumers.get(value, []))
    while frontier - {OUTSIDE} and len(taken) < _MAX_NODES:
        index = min(frontier - {OUTSIDE})  # nodes are in topological order
        node = graph.nodes[index]
        result = _evaluate(graph, node, known)
        if result is None:
            return None
        known[node.output[0]] = result
        taken.append(index)
        frontier |= set(graph.consumers.get(node.output[0], []))
        frontier -= set(taken)
        if _closed(graph, value, node.output[0], taken):
            kind = _classify(result)
            if kind is not None:
                return Activation(kind, tuple(taken), node.output[0])
    return None


def _closed(graph: Graph, start: str, last: str, taken: Sequence[int]) -> bool:
    made = [start, *(graph.nodes[index].output[0] for index in taken)]
    return all(reader in taken for name in made if name != last for reader in graph.consumers.get(name, []))


def _classify(result: Array) -> str | None:
    for kind, function in KNOWN.items():
        expected = function(_SAMPLES)
        if np.allclose(result, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            return kind
    return None


def _evaluate(graph: Graph, node: onnx.NodeProto, known: Mapping[str, Array]) -> Array | None:
    if len(node.output) != 1:
        return None
    operands: list[Array] = []
    for name in node.input:
        scalar = None if name in known else graph.scalar(name)
        if name not in known and scalar is None:
            return None
        operands.append(known[name] if name in known else np.full_like(_SAMPLES, scalar))
    with np.errstate(all="ignore"):
        return _apply(node, operands)


def _apply(node: onnx.NodeProto, operands: Sequence[Array]) -> Array | None:
    op = node.op_type
    if op == "Gelu" and node.domain in ("", "ai.onnx"):
        exact = attribute(node, "approximate", "none") != "tanh"
        return (_gelu if exact else _gelu_tanh)(operands[0])
    if node.domain == "com.microsoft" and len(operands) == 1:
        return {"Gelu": _gelu, "FastGelu": _gelu_tanh}.get(op, lambda _: None)(operands[0])
    if node.domain not in ("", "ai.onnx"):
        return None
    if op in _UNARY and len(operands) == 1:
        return _UNARY[op](operands[0])
    if op in _BINARY and len(operands) == 2:
        return _BINARY[op](operands[0], operands[1])
    return None
