"""Rules of operators that read or write places in a dimension: such a dimension keeps its size."""

from __future__ import annotations

from torch.fx import Node

from sparsify.graph.dimensions import Call, Dimensions, Dims, Unsolved, Value, axis_of
from sparsify.graph.poly import Poly
from sparsify.graph.rules_elementwise import Rule


def _pin_axes(call: Call, dimensions: Dimensions, shape: Dims, axes: list[int]) -> None:
    for axis in axes:
        dimensions.pin_axis(shape, axis, f"{dimensions.where(call.node)} addresses places in it")


def embedding(call: Call, dimensions: Dimensions) -> Value:
    """Rows of a table."""
    table, indices = dimensions.tensor(call["weight"]), dimensions.tensor(call["indices"])
    dimensions.pin_axis(table, 0, "number of rows of an embedding")
    return (*indices, *table[1:])


def index_select(call: Call, dimensions: Dimensions) -> Value:
    """Slices at the places listed in a vector."""
    source, index = dimensions.tensor(call["self"]), dimensions.tensor(call["index"])
    axis = axis_of(call["dim"], len(source))
    _pin_axes(call, dimensions, source, [axis])
    return (*source[:axis], index[0] if index else Poly(1), *source[axis + 1 :])


def gather(call: Call, dimensions: Dimensions) -> Value:
    """An entry for each index; the result has the shape of the index."""
    source, name = dimensions.tensor(call["self"]), "indices" if "indices" in call.values else "index"
    index = dimensions.tensor(call[name])
    axis = axis_of(call.get("dim") or 0, len(source))
    _pin_axes(call, dimensions, source, [axis])
    for other in set(range(min(len(source), len(index)))) - {axis}:
        if dimensions.widths.value(source[other]) == dimensions.widths.value(index[other]):
            dimensions.unify(source[other], index[other], call.node)
        else:
            _pin_axes(call, dimensions, source, [other])
            _pin_axes(call, dimensions, index, [other])
    return index


def index(call: Call, dimensions: Dimensions) -> Value:
    """Advanced indexing; indexed dimensions keep their size, the others are carried over."""
    source = dimensions.tensor(call["self"])
    given: list[Node | None] = list(call["indices"])
    shapes = [dimensions.tensor(item) for item in given if item is not None]
    if any(item is not None and "bool" in str(item.meta["val"].dtype) for item in given):
        raise Unsolved("a mask selects a number of entries known at run time only")
    axes = [axis for axis, item in enumerate(given) if item is not None]
    _pin_axes(call, dimensions, source, axes)
    selected = dimensions.broadcast(shapes, call.node)
    rest = [size for axis, size in enumerate(source) if axis not in axes]
    place = axes[0] if axes == list(range(axes[0], axes[-1] + 1)) else 0
    return (*rest[:place], *selected, *rest[place:])


def write_axis(call: Call, dimensions: Dimensions) -> Value:
    """Writes at places of one dimension; the other dimensions of what is written keep their size, too."""
    source = dimensions.tensor(call["self"])
    for argument in call.node.all_input_nodes:
        value = dimensions.values.get(argument)
        if isinstance(value, tuple):
            dimensions.pin(value, f"{dimensions.where(call.node)} addresses places in it")
    return source


def write(call: Call, dimensions: Dimensions) -> Value:
    """Writes into indexed dimensions."""
    source = dimensions.tensor(call["self"])
    axes = [axis for axis, item in enumerate(call["indices"]) if item is not None]
    _pin_axes(call, dimensions, source, axes)
    dimensions.pin(dimensions.tensor(call["values"]), f"{dimensions.where(call.node)} writes it")
    return source


def slice_scatter(call: Call, dimensions: Dimensions) -> Value:
    """Overwrites a slice or one place of a dimension."""
    source, written = dimensions.tensor(call["self"]), dimensions.tensor(call["src"])
    axis = axis_of(call.get("dim") or 0, len(source))
    _pin_axes(call, dimensions, source, [axis])
    inner = source if len(written) == len(source) else (*source[:axis], *source[axis + 1 :])
    for position, size in enumerate(written):
        if len(written) != len(source) or position != axis:
            dimensions.unify(inner[position], size, call.node)
    return source


def topk(call: Call, dimensions: Dimensions) -> Value:
    """The largest entries along a dimension, and their places."""
    source = dimensions.tensor(call["self"])
    axis = axis_of(call["dim"] if call.get("dim") is not None else -1, len(source))
    _pin_axes(call, dimensions, source, [axis])
    shape = (*source[:axis], Poly(call["k"]), *source[axis + 1 :]) if isinstance(call["k"], int) else None
    if shape is None:
        raise Unsolved("the number of entries is known at run time only")
    return [shape, shape]


def one_hot(call: Call, dimensions: Dimensions) -> Value:
    """A new last dimension with a place for each class."""
    recorded = dimensions.present(call.node)
    return (*dimensions.tensor(call["self"]), recorded[-1])


RULES: dict[str, Rule] = {
    "embedding": embedding,
    "index_select": index_select,
    "gather": gather,
    "take_along_dim": gather,
    "index": index,
    "_unsafe_index": index,
    **dict.fromkeys(
        ("scatter", "scatter_add", "scatter_reduce", "index_add", "index_fill", "index_copy"), write_axis
    ),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), write),
    **dict.fromkeys(("slice_scatter", "select_scatter"), slice_scatter),
    "topk": topk,
    "one_hot": one_hot,
}
