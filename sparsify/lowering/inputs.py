"""Random inputs for a model that nobody described: shapes from the graph, integers kept in range."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

import numpy as np
import onnx

from sparsify.errors import UserError
from sparsify.lowering.graph import Dim, Graph
from sparsify.runtime.feeds import draw, smallest_table

Array = np.ndarray

SIZES: tuple[tuple[int, int], ...] = ((2, 16), (1, 16), (1, 64), (1, 224), (1, 1))
"""Sizes tried in turn for symbolic dimensions: (the first dimension's symbol, every other symbol)."""

_ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def random_inputs(
    graph: Graph,
    *,
    batch: int = 2,
    other: int = 16,
    symbols: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Array]:
    """Draws one input for every graph input without a default.

    What is drawn, `runtime.feeds.draw` says.

    Args:
        graph: The indexed graph.
        batch: Size of the symbol that is the first dimension of the first input.
        other: Size of all other symbolic or unknown dimensions.
        symbols: Sizes of dimensions by symbol, before `batch` and `other`.
        seed: Seed of the generator.

    Raises:
        UserError: An input is no tensor of numbers.
    """
    generator = np.random.default_rng(seed)
    values: dict[str, Array] = {}
    known = dict(symbols or {})
    for value in graph.model.graph.input:
        if value.name in graph.overridable:
            continue
        kind = value.type.tensor_type.elem_type
        if not value.type.HasField("tensor_type") or kind == onnx.TensorProto.STRING:
            raise UserError(
                f"input {value.name!r} is no tensor of numbers: pass example inputs with inputs=…"
            )
        shape = [
            _size(dim, position, known, batch, other)
            for position, dim in enumerate(graph.shapes.get(value.name, ()))
        ]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
        entries = smallest_table(graph.model, value.name, graph.shapes)
        values[value.name] = draw(value.name, dtype, shape, entries, generator)
    return values


def shapes_on(graph: Graph, inputs: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Shapes of the values whose symbolic shapes follow from the inputs' sizes.

    Args:
        graph: The indexed graph.
        inputs: An array for every graph input.
    """
    symbols: dict[str, int] = {}
    for name, value in inputs.items():
        for dim, size in zip(graph.shapes.get(name, ()), value.shape, strict=False):
            if isinstance(dim, str):
                symbols.setdefault(dim, size)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in graph.shapes.items():
        sizes = [_known_size(dim, symbols) for dim in shape]
        if None not in sizes:
            shapes[name] = tuple(size for size in sizes if size is not None)
    return shapes


def _known_size(dim: Dim, symbols: Mapping[str, int]) -> int | None:
    if isinstance(dim, int) or dim is None:
        return dim
    if dim in symbols:
        return symbols[dim]
    try:
        tree = ast.parse(dim, mode="eval")
        names = {item.id for item in ast.walk(tree) if isinstance(item, ast.Name)}
        return _evaluate(tree.body, dict(symbols), 0) if names <= set(symbols) else None
    except (SyntaxError, ValueError):
        return None


def _size(dim: Dim, position: int, symbols: dict[str, int], batch: int, other: int) -> int:
    if isinstance(dim, int):
        return dim
    default = batch if position == 0 else other
    if dim is None:
        return default
    if dim.isidentifier():
        return symbols.setdefault(dim, default)
    try:
        return max(1, _evaluate(ast.parse(dim, mode="eval").body, symbols, other))
    except (SyntaxError, KeyError, ValueError):
        return symbols.setdefault(dim, default)


def _evaluate(tree: ast.expr, symbols: dict[str, int], other: int) -> int:
    if isinstance(tree, ast.BinOp) and type(tree.op) in _ARITHMETIC:
        left, right = (_evaluate(side, symbols, other) for side in (tree.left, tree.right))
        return _ARITHMETIC[type(tree.op)](left, right)
    if isinstance(tree, ast.Name):
        return symbols.setdefault(tree.id, other)
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    raise ValueError("not integer arithmetic over symbols")
