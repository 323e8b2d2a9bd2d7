"""Random inputs for a model that nobody described: shapes from the graph, integers kept in range."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

import numpy as np
import onnx

from sparsify.errors import UserError
from sparsify.lowering.graph import Dim, Graph

Array = np.ndarray

SIZES: tuple[tuple[int, int], ...] = ((2, 16), (1, 16), (1, 64), (1, 224), (1, 1))
"""Sizes tried in turn for symbolic dimensions: (the first dimension's symbol, every other symbol)."""

TUNED_SIZES = (1, 128)
"""Sizes of symbolic dimensions that speed is measured at."""

_THROUGH = ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Slice", "Expand")
_ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def random_inputs(graph: Graph, *, batch: int = 2, other: int = 16, seed: int = 0) -> dict[str, Array]:
    """Draws one input for every graph input without a default.

    Floats are standard normal; integers that index a table lie below the smallest table they reach;
    other integers and booleans are ones, as masks are.

    Args:
        graph: The indexed graph.
        batch: Size of the symbol that is the first dimension of the first input.
        other: Size of all other symbolic or unknown dimensions.
        seed: Seed of the generator.

    Raises:
        UserError: An input is no tensor of numbers.
    """
    generator = np.random.default_rng(seed)
    values: dict[str, Array] = {}
    symbols: dict[str, int] = {}
    for value in graph.model.graph.input:
        if value.name in graph.overridable:
            continue
        kind = value.type.tensor_type.elem_type
        if not value.type.HasField("tensor_type") or kind == onnx.TensorProto.STRING:
            raise UserError(
                f"input {value.name!r} is no tensor of numbers: pass example inputs with inputs=…"
            )
        shape = [
            _size(dim, position, symbols, batch, other)
            for position, dim in enumerate(graph.shapes.get(value.name, ()))
        ]
        values[value.name] = _draw(
            graph, value.name, onnx.helper.tensor_dtype_to_np_dtype(kind), shape, generator
        )
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


def _draw(
    graph: Graph, name: str, dtype: np.dtype, shape: list[int], generator: np.random.Generator
) -> Array:
    if dtype.kind not in "iub":
        return generator.standard_normal(shape, dtype=np.float32).astype(dtype)
    rows = _smallest_table(graph, name)
    if rows is None or dtype.kind == "b":
        return np.ones(shape, dtype=dtype)
    return generator.integers(0, rows, shape).astype(dtype)


def _smallest_table(graph: Graph, name: str) -> int | None:
    found: list[int] = []
    pending, seen = [name], {name}
    while pending:
        current = pending.pop()
        for index in graph.consumers.get(current, []):
            node = graph.nodes[index] if index >= 0 else None
            if node is None:
                continue
            if node.op_type == "Gather" and node.input[1] == current:
                found.extend(_rows(graph, node))
            elif node.op_type in _THROUGH and node.input[0] == current and node.output[0] not in seen:
                seen.add(node.output[0])
                pending.append(node.output[0])
    return min(found, default=None)


def _rows(graph: Graph, node: onnx.NodeProto) -> list[int]:
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    shape = graph.shapes.get(node.input[0], ())
    size = shape[axis] if -len(shape) <= axis < len(shape) else None
    return [size] if isinstance(size, int) else []


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
