"""Recognises activation functions by what they compute, not by how they are spelled.

Exporters write GELU as one node, as x·½·(1 + erf(x/√2)) in any association, or as its tanh form. So the
elementwise nodes that hang on one value, with scalar constants as their only other inputs, are gathered
until their last output is all that the rest of the graph sees; then that region is evaluated on sample
points and compared with the activations that the kernels know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from sparsify.lowering.graph import OUTSIDE, STANDARD, Graph, attribute

Array = np.ndarray

_MAX_NODES = 12
_HUGE = float(np.finfo(np.float32).max)
_FAR = np.array([-_HUGE, -1e4, -100.0, -30.0, 30.0, 100.0, 1e4, _HUGE])
_SAMPLES = np.sort(np.concatenate([np.linspace(-8.0, 8.0, 161), _FAR]))
_TOLERANCE = 2e-6  # constants such as 1/√2 are stored as float32
_HALF_TOLERANCE = 2e-3  # or as float16


def _erf(x: Array) -> Array:
    return np.array([math.erf(item) for item in x])


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _silu(x: Array) -> Array:
    return np.asarray(x / (1.0 + np.exp(np.minimum(-x, 700.0))))


KNOWN: Mapping[str, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(x, 0.0),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
}
"""Activations without parameters that can be recognised, as float64 functions; "clip" is one with bounds."""

_UNARY: Mapping[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x,
    "Relu": KNOWN["relu"],
    "Erf": _erf,
    "Tanh": np.tanh,
    "Neg": np.negative,
    "Abs": np.abs,
    "Exp": np.exp,
    "Sigmoid": _sigmoid,
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
        kind: A key of `KNOWN`, or "clip".
        nodes: Indices of the nodes that compute it.
        output: Name of its result.
        bounds: Least and greatest result of "clip".
    """

    kind: str
    nodes: tuple[int, ...]
    output: str
    bounds: tuple[float, float] | None = None


def find_activation(
    graph: Graph, value: str, kinds: Container[str] = (*KNOWN, "clip"), *, half: bool = False
) -> Activation | None:
    """The longest activation that readers of `value` together compute, if it is of a wanted kind.

    Args:
        graph: The indexed graph.
        value: Name of the pre-activation.
        kinds: Wanted kinds.
        half: The graph computes in float16, so its constants are that coarse.
    """
    known: dict[str, Array] = {value: _SAMPLES}
    taken: list[int] = []
    found: Activation | None = None
    frontier = set(graph.consumers.get(value, []))
    while frontier - {OUTSIDE} and len(taken) < _MAX_NODES:
        index = min(frontier - {OUTSIDE})  # nodes are in topological order
        node = graph.nodes[index]
        result = _evaluate(graph, node, known)
        if result is None:
            break
        known[node.output[0]] = result
        taken.append(index)
        frontier |= set(graph.consumers.get(node.output[0], []))
        frontier -= set(taken)
        if _closed(graph, value, node.output[0], taken):
            kind, bounds = _classify(result, _HALF_TOLERANCE if half else _TOLERANCE)
            if kind in kinds:
                found = Activation(kind, tuple(taken), node.output[0], bounds)
    return found


def _closed(graph: Graph, start: str, last: str, taken: Sequence[int]) -> bool:
    made = [start, *(graph.nodes[index].output[0] for index in taken)]
    return all(reader in taken for name in made if name != last for reader in graph.consumers.get(name, []))


def _classify(result: Array, tolerance: float) -> tuple[str, tuple[float, float] | None]:
    errors = {kind: _worst(result, function(_SAMPLES)) for kind, function in KNOWN.items()}
    nearest = min(errors, key=lambda kind: errors[kind])
    if errors[nearest] <= tolerance:
        return nearest, None
    low, high = float(result[0]), float(result[-1])
    bounded = -_HUGE <= low < high <= _HUGE and (low, high) != (-_HUGE, _HUGE)
    if bounded and _worst(result, np.clip(_SAMPLES, low, high)) == 0.0:
        return "clip", (low, high)
    return "", None


def _worst(result: Array, expected: Array) -> float:
    """Largest difference as a share of the magnitude, at least 1."""
    if not np.isfinite(result).all():
        return math.inf
    return float(np.max(np.abs(result - expected) / np.maximum(1.0, np.abs(expected))))


def _evaluate(graph: Graph, node: onnx.NodeProto, known: Mapping[str, Array]) -> Array | None:
    if len(node.output) != 1:
        return None
    operands: list[Array | None] = []
    for name in node.input:
        scalar = graph.scalar(name) if name and name not in known else None
        if name and name not in known and scalar is None:
            return None
        operands.append(known.get(name) if scalar is None else np.full_like(_SAMPLES, scalar))
    with np.errstate(all="ignore"):
        return _apply(node, operands)


def _apply(node: onnx.NodeProto, operands: Sequence[Array | None]) -> Array | None:
    op, x = node.op_type, operands[0] if operands else None
    if x is None:
        return None
    if op == "Clip" and node.domain in STANDARD:
        return _clip(node, x, operands[1:])
    others = [item for item in operands[1:] if item is not None]
    if len(others) != len(operands) - 1:
        return None
    if op == "Gelu" and node.domain in STANDARD:
        return (_gelu if attribute(node, "approximate", "none") != "tanh" else _gelu_tanh)(x)
    if op == "Swish" and node.domain in STANDARD:
        return np.asarray(x * _sigmoid(attribute(node, "alpha", 1.0) * x))
    if node.domain == "com.microsoft" and not others:
        return _microsoft(node, x)
    if node.domain not in STANDARD:
        return None
    if op in _UNARY and not others:
        return _UNARY[op](x)
    if op in _BINARY and len(others) == 1:
        return _BINARY[op](x, others[0])
    return None


def _microsoft(node: onnx.NodeProto, x: Array) -> Array | None:
    if node.op_type == "QuickGelu":
        return np.asarray(x * _sigmoid(attribute(node, "alpha", 1.702) * x))
    return {"Gelu": _gelu, "FastGelu": _gelu_tanh}.get(node.op_type, lambda _: None)(x)


def _clip(node: onnx.NodeProto, x: Array, bounds: Sequence[Array | None]) -> Array:
    """Clip with bounds as inputs (opset 11) or attributes; an absent one is the type's own."""
    low, high = attribute(node, "min", -_HUGE), attribute(node, "max", _HUGE)
    least = bounds[0] if bounds and bounds[0] is not None else np.full_like(x, low)
    most = bounds[1] if len(bounds) > 1 and bounds[1] is not None else np.full_like(x, high)
    return np.asarray(np.minimum(np.maximum(x, least), most))
