"""Sizes that a graph computes, and what Reshape makes of a value with such a target shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from sparsify.lowering.graph import STANDARD, Dim, Graph, Shape, attribute

_DEPTH = 8
_SAME = ("Identity", "Cast", "Squeeze", "Unsqueeze")


def sizes_in(graph: Graph, name: str) -> tuple[Dim, ...] | None:
    """Elements of a vector of sizes, as far as they are known, or None where it is made in another way.

    Args:
        graph: The indexed graph.
        name: An integer value of rank 0 or 1, made of constants and of other values' shapes.
    """
    constant = graph.constant(name)
    if isinstance(constant, np.ndarray):
        vector = constant.dtype.kind in "iu" and constant.ndim <= 1
        return tuple(int(size) for size in constant.reshape(-1)) if vector else None
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    if node is None or node.domain not in STANDARD or not node.input:
        return None
    if node.op_type == "Shape":
        shape = shape_of(graph, node.input[0])
        return None if shape is None else shape[attribute(node, "start", 0) : attribute(node, "end", None)]
    if node.op_type == "Concat":
        parts = [sizes_in(graph, item) for item in node.input]
        return None if None in parts else tuple(size for part in parts if part is not None for size in part)
    whole = sizes_in(graph, node.input[0])
    if whole is None:
        return None
    if node.op_type in _SAME:
        return whole
    if node.op_type == "Gather":
        places = graph.constant(node.input[1])
        fits = isinstance(places, np.ndarray) and all(abs(int(i) + 0.5) <= len(whole) for i in places.flat)
        return tuple(whole[int(i)] for i in places.flat) if fits and isinstance(places, np.ndarray) else None
    return _slice(graph, node, whole) if node.op_type == "Slice" else None


def _slice(graph: Graph, node: onnx.NodeProto, whole: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    given = [sizes_in(graph, name) if name else None for name in node.input[1:3]]
    step = sizes_in(graph, node.input[4]) if len(node.input) > 4 else (1,)
    bounds = [part[0] for part in given if part is not None and len(part) == 1]
    if len(bounds) != 2 or step != (1,) or not all(isinstance(bound, int) for bound in bounds):
        return None
    first, last = (int(bound) for bound in bounds if isinstance(bound, int))
    return whole[first:last]


def number(graph: Graph, name: str, depth: int = _DEPTH) -> float | None:
    """Value of a scalar made of constants and known sizes, as a scale that is a root of the head size.

    Args:
        graph: The indexed graph.
        name: The value.
        depth: Nodes to look back at most.
    """
    constant = graph.scalar(name)
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    if constant is not None or node is None or depth == 0 or node.domain not in STANDARD:
        return constant
    if node.op_type in ("Slice", "Gather"):
        sizes = sizes_in(graph, name)
        return (
            float(sizes[0]) if sizes is not None and len(sizes) == 1 and isinstance(sizes[0], int) else None
        )
    if node.op_type not in (*_SAME, "Sqrt", "Div", "Mul"):
        return None
    read = node.input[:1] if node.op_type in _SAME else node.input
    values = [number(graph, item, depth - 1) for item in read]
    first, *others = values
    if first is None or None in others:
        return None
    if node.op_type == "Sqrt":
        return math.sqrt(first) if first >= 0.0 else None
    if node.op_type == "Mul":
        return first * (others[0] or 0.0)
    if node.op_type == "Div":
        return first / others[0] if others[0] else None
    return first


def shape_of(graph: Graph, name: str, depth: int = _DEPTH) -> Shape | None:
    """Shape of a value, also where inference lost it behind Reshape, Transpose or a product with a scalar.

    Args:
        graph: The indexed graph.
        name: The value.
        depth: Nodes to look back at most.
    """
    known = graph.shapes.get(name)
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    if (known is not None and None not in known) or node is None or depth == 0 or node.domain not in STANDARD:
        return known
    if node.op_type == "Reshape":
        return reshaped(graph, node, shape_of(graph, node.input[0], depth - 1))
    if node.op_type == "Expand":
        source, target = shape_of(graph, node.input[0], depth - 1), sizes_in(graph, node.input[1])
        ones = source is not None and all(size == 1 for size in source)
        return target if ones and target is not None and len(target) >= len(source or ()) else known
    if node.op_type == "Trilu":
        return shape_of(graph, node.input[0], depth - 1)
    if node.op_type in ("Equal", "Where"):
        parts = [shape_of(graph, item, depth - 1) for item in node.input]
        sized = [part for part in parts if part != ()]
        return sized[0] if len(sized) == 1 else known
    if node.op_type == "Transpose":
        source = shape_of(graph, node.input[0], depth - 1)
        perm: list[int] = attribute(node, "perm", [])
        return known if source is None or len(perm) != len(source) else tuple(source[axis] for axis in perm)
    if node.op_type in ("Mul", "Div"):
        inner = [item for item in node.input if number(graph, item) is None]
        return shape_of(graph, inner[0], depth - 1) if len(inner) == 1 else known
    return known


def reshaped(graph: Graph, node: onnx.NodeProto, source: Shape | None = None) -> Shape | None:
    """Shape of a Reshape's output: worked out from its target, else what the graph says.

    Inference gives a size that it cannot work out a symbol of its own, so what the graph says comes second.

    Args:
        graph: The indexed graph.
        node: The Reshape.
        source: Shape of its input, where more is known of it than the graph says.
    """
    known = graph.shapes.get(node.output[0])
    source, target = source or graph.shapes.get(node.input[0]), sizes_in(graph, node.input[1])
    if source is None or target is None or (known is not None and len(known) != len(target)):
        return known
    if not attribute(node, "allowzero", 0):
        target = tuple(
            source[axis] if size == 0 and axis < len(source) else size for axis, size in enumerate(target)
        )
    rest = _rest(source, [size for size in target if size != -1]) if -1 in target else None
    worked_out = [rest if size == -1 else size for size in target]
    given = known or (None,) * len(target)
    return tuple(
        told if size is None or isinstance(told, int) else size
        for size, told in zip(worked_out, given, strict=True)
    )


def _rest(source: Shape, taken: Sequence[Dim]) -> Dim:
    """What is left of a product of sizes when others are divided out; None where that is unknown."""
    if None in source or None in taken:
        return None
    symbols = [size for size in source if isinstance(size, str)]
    for size in taken:
        if isinstance(size, str):
            if size not in symbols:
                return None
            symbols.remove(size)
    numbers = math.prod(size for size in source if isinstance(size, int))
    divisor = math.prod(size for size in taken if isinstance(size, int))
    if divisor == 0 or numbers % divisor:
        return None
    ratio = numbers // divisor
    if not symbols:
        return ratio
    return symbols[0] if ratio == 1 and len(symbols) == 1 else None
