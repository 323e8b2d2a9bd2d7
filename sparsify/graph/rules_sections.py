"""Rules of operators that join tensors and cut them: a width is a sum of sections."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.fx import Node

from sparsify.graph.dimensions import Call, Dimensions, Dims, Unsolved, Value, axis_of
from sparsify.graph.poly import Poly
from sparsify.graph.rules_elementwise import Rule

_END = sys.maxsize


def cat(call: Call, dimensions: Dimensions) -> Value:
    """Joins tensors along a dimension; their other dimensions are equal."""
    shapes = [dimensions.tensor(item) for item in call["tensors"]]
    rank = max(len(shape) for shape in shapes)
    shapes = [shape for shape in shapes if len(shape) == rank]
    axis = axis_of(call.get("dim", 0), rank)
    for shape in shapes[1:]:
        for other in set(range(rank)) - {axis}:
            dimensions.unify(shapes[0][other], shape[other], call.node)
    total = dimensions.widths.joined(shape[axis] for shape in shapes)
    return (*shapes[0][:axis], total, *shapes[0][axis + 1 :])


def stack(call: Call, dimensions: Dimensions) -> Value:
    """Joins tensors along a new dimension."""
    shapes = [dimensions.tensor(item) for item in call["tensors"]]
    for shape in shapes[1:]:
        dimensions.unify_shape(shapes[0], shape, call.node)
    axis = call.get("dim", 0) % (len(shapes[0]) + 1)
    return (*shapes[0][:axis], Poly(len(shapes)), *shapes[0][axis:])


def split(call: Call, dimensions: Dimensions) -> Value:
    """Equal sections, or sections of stated sizes."""
    source = dimensions.tensor(call["self"])
    axis = axis_of(call["dim"], len(source))
    name = "split_size" if "split_size" in call.values else "split_sizes"
    if isinstance(call[name], (list, tuple)):
        sections = [size or Poly(0) for size in dimensions.sizes(call, name)]
        dimensions.widths.layouts.made(source[axis], "sum", sections)
        dimensions.unify(source[axis], sum(sections, Poly(0)), call.node)
        return [(*source[:axis], size, *source[axis + 1 :]) for size in sections]
    if dimensions.is_fixed(source[axis]):
        return dimensions.meta(call.node.meta["val"])
    section = dimensions.size(call[name], call.node, call.paths[name])
    return _equal_sections(call.node, source, axis, section, dimensions)


def chunk(call: Call, dimensions: Dimensions) -> Value:
    """A fixed number of equal sections."""
    source = dimensions.tensor(call["self"])
    axis = axis_of(call["dim"], len(source))
    if dimensions.is_fixed(source[axis]):
        return dimensions.meta(call.node.meta["val"])
    section = dimensions.widths.fresh(dimensions.widths.value(source[axis]) // call["chunks"])
    return _equal_sections(call.node, source, axis, section, dimensions)


def _equal_sections(node: Node, source: Dims, axis: int, section: Poly, dimensions: Dimensions) -> list[Dims]:
    count, rest = divmod(dimensions.widths.value(source[axis]), dimensions.widths.value(section))
    if rest:
        raise Unsolved("the last section is smaller than the others")
    dimensions.widths.layouts.made(source[axis], "product", (Poly(count), section))
    dimensions.unify(source[axis], section * count, node)
    return [(*source[:axis], section, *source[axis + 1 :])] * count


def unbind(call: Call, dimensions: Dimensions) -> Value:
    """One result for each place in a dimension, whose size therefore stays."""
    source = dimensions.tensor(call["self"])
    axis = axis_of(call["dim"], len(source))
    dimensions.pin_axis(source, axis, f"{dimensions.where(call.node)} returns a tensor for each place in it")
    rest = (*source[:axis], *source[axis + 1 :])
    return [rest] * dimensions.widths.value(source[axis])


def select(call: Call, dimensions: Dimensions) -> Value:
    """Reads one place in a dimension, whose size therefore stays."""
    source = dimensions.tensor(call["self"])
    axis = axis_of(call["dim"], len(source))
    dimensions.pin_axis(source, axis, f"{dimensions.where(call.node)} reads one place in it")
    return (*source[:axis], *source[axis + 1 :])


def cut(call: Call, dimensions: Dimensions) -> Value:
    """A slice: of a width, a section between places where any reader cuts it."""
    source = dimensions.tensor(call["self"])
    axis = axis_of(call.get("dim", 0), len(source))
    if dimensions.is_fixed(source[axis]):
        recorded = dimensions.present(call.node)
        return (*source[:axis], recorded[axis], *source[axis + 1 :])
    size = dimensions.widths.value(source[axis])
    bounds = _bounds(call, size)
    if bounds is None:
        dimensions.pin_axis(source, axis, f"{dimensions.where(call.node)} cuts it where the run says")
        return (*source[:axis], dimensions.present(call.node)[axis], *source[axis + 1 :])
    start, end, step = bounds
    if step > 1:
        return (*source[:axis], _strided(call, source[axis], bounds, dimensions), *source[axis + 1 :])
    positions = dimensions.sections(call["self"], axis, source[axis], _cuts(call["self"], axis, size))
    _record_bounds(call, positions, size, dimensions)
    return (*source[:axis], positions[end] - positions[start], *source[axis + 1 :])


def _bounds(call: Call, size: int) -> tuple[int, int, int] | None:
    if "length" in call.values:
        start, end, step = call["start"], call["start"] + call["length"], 1
    else:
        start, end, step = call.get("start"), call.get("end"), call.get("step", 1)
    start, end = 0 if start is None else start, _END if end is None else end
    if not all(isinstance(bound, int) for bound in (start, end, step)):
        return None
    start, end, step = slice(start, end, step).indices(size)
    return start, max(start, end), step


def _strided(call: Call, width: Poly, bounds: tuple[int, int, int], dimensions: Dimensions) -> Poly:
    start, end, step = bounds
    size = dimensions.widths.value(width)
    if end != size or start >= step or size % step or call.get("end") not in (None, _END):
        raise Unsolved("a width is read in steps")
    return dimensions.part(width, step, inner=True)


def _cuts(source: Node, axis: int, size: int) -> list[int]:
    cuts = {0, size}
    for user in source.users:
        if user.target in _SLICES and user.args[0] is source:
            call = Call.of(user)
            bounds = _bounds(call, size)
            rank = len(source.meta["val"].shape)
            if bounds is not None and bounds[2] == 1 and axis_of(call.get("dim", 0), rank) == axis:
                cuts.update(bounds[:2])
    return sorted(cuts)


def _record_bounds(call: Call, positions: dict[int, Poly], size: int, dimensions: Dimensions) -> None:
    whole = positions[size]
    for name in ("start", "end"):
        given = call.get(name)
        if given is None or name not in call.paths or given in (0, _END) or abs(given) > size:
            continue
        value = positions[given] if given > 0 else positions[size + given] - whole
        dimensions.literals.append((call.node, call.paths[name], value))
    if "length" in call.values:
        start = call["start"] % max(size, 1)
        value = positions[start + call["length"]] - positions[start]
        dimensions.literals.append((call.node, call.paths["length"], value))


_SLICES = {torch.ops.aten.slice.Tensor, torch.ops.aten.narrow.default}


def pad(call: Call, dimensions: Dimensions) -> Value:
    """Adds entries at both ends of the last dimensions."""
    source = list(dimensions.tensor(call["self"]))
    amounts: list[Any] = list(call["pad"])
    for pair in range(len(amounts) // 2):
        axis = len(source) - 1 - pair
        added = []
        for index in (2 * pair, 2 * pair + 1):
            amount = amounts[index]
            if isinstance(amount, int) and amount < 0:
                added.append(Poly(amount))
                dimensions.pin_axis(tuple(source), axis, f"{dimensions.where(call.node)} crops it")
            elif dimensions.is_fixed(source[axis]) and isinstance(amount, int):
                added.append(Poly(amount))
            else:
                added.append(dimensions.size(amount, call.node, (*call.paths["pad"], index)))
        source[axis] = sum(added, source[axis])
    return tuple(source)


RULES: dict[str, Rule] = {
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
    "stack": stack,
    "split": split,
    "split_with_sizes": split,
    "chunk": chunk,
    "unbind": unbind,
    "select": select,
    "slice": cut,
    "narrow": cut,
    "constant_pad_nd": pad,
    "pad": pad,
}
