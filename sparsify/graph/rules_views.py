"""Rules of operators that rearrange dimensions: reshapes, permutations, expansions, joins and cuts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from sparsify.graph.dimensions import Call, Dimensions, Dims, Unsolved, Value, axis_of
from sparsify.graph.poly import Poly
from sparsify.graph.reshape import reshape
from sparsify.graph.rules_elementwise import Rule

_END = sys.maxsize


def view(call: Call, dimensions: Dimensions) -> Value:
    """A reshape to stated sizes."""
    source = dimensions.tensor(call["self"])
    name = "size" if "size" in call.values else "shape"
    return reshape(dimensions, call.node, source, dimensions.sizes(call, name), dimensions.present(call.node))


def flatten(call: Call, dimensions: Dimensions) -> Value:
    """Merges a run of dimensions."""
    source = dimensions.tensor(call["self"])
    if not source:
        return (Poly(1),)
    start, end = axis_of(call.get("start_dim", 0), len(source)), axis_of(call.get("end_dim", -1), len(source))
    parts = [part for size in source[start : end + 1] for part in dimensions.widths.factors(size)]
    return (*source[:start], dimensions.widths.flattened(parts), *source[end + 1 :])


def unflatten(call: Call, dimensions: Dimensions) -> Value:
    """Splits one dimension."""
    source = dimensions.tensor(call["self"])
    axis = axis_of(call["dim"], len(source))
    targets = dimensions.sizes(call, "sizes")
    present = dimensions.present(call.node)[axis : axis + len(targets)]
    inner = reshape(dimensions, call.node, (source[axis],), targets, present)
    return (*source[:axis], *inner, *source[axis + 1 :])


def squeeze(call: Call, dimensions: Dimensions) -> Value:
    """Drops dimensions of size 1."""
    source = dimensions.tensor(call["self"])
    given = call.get("dim")
    axes = range(len(source)) if given is None else given if isinstance(given, (list, tuple)) else [given]
    dropped = {axis_of(axis, len(source)) for axis in axes}
    return tuple(size for axis, size in enumerate(source) if axis not in dropped or size.constant != 1)


def unsqueeze(call: Call, dimensions: Dimensions) -> Value:
    """Adds a dimension of size 1."""
    source = dimensions.tensor(call["self"])
    axis = call["dim"] % (len(source) + 1)
    return (*source[:axis], Poly(1), *source[axis:])


def permute(call: Call, dimensions: Dimensions) -> Value:
    """Reorders dimensions."""
    source = dimensions.tensor(call["self"])
    return tuple(source[axis] for axis in call["dims"])


def transpose(call: Call, dimensions: Dimensions) -> Value:
    """Exchanges two dimensions."""
    source = list(dimensions.tensor(call["self"]))
    pairs = (("dim0", "dim1"), ("axis0", "axis1"))
    names = next((pair for pair in pairs if pair[0] in call.values), None)
    a, b = (axis_of(call[name], len(source)) for name in names) if names else (-2, -1)
    if len(source) > 1:
        source[a], source[b] = source[b], source[a]
    return tuple(source)


def reverse(call: Call, dimensions: Dimensions) -> Value:
    """All dimensions in reverse order."""
    return dimensions.tensor(call["self"])[::-1]


def movedim(call: Call, dimensions: Dimensions) -> Value:
    """Moves dimensions to other places."""
    source = dimensions.tensor(call["self"])
    starts, ends = (
        [given] if isinstance(given, int) else list(given) for given in (call["source"], call["destination"])
    )
    places = dict(
        zip(
            [axis_of(axis, len(source)) for axis in ends],
            [axis_of(axis, len(source)) for axis in starts],
            strict=True,
        )
    )
    others = (axis for axis in range(len(source)) if axis not in places.values())
    return tuple(source[places[axis] if axis in places else next(others)] for axis in range(len(source)))


def expand(call: Call, dimensions: Dimensions) -> Value:
    """Repeats dimensions of size 1; a count that nothing else explains is a ratio that stays."""
    source = dimensions.tensor(call["self"])
    sizes = dimensions.sizes(call, "size", ratio=True)
    return _expand(call.node, source, sizes, dimensions)


def _expand(node: Node, source: Dims, sizes: Sequence[Poly | None], dimensions: Dimensions) -> Dims:
    missing = len(sizes) - len(source)
    result = list(sizes[:missing])
    for size, target in zip(source, sizes[missing:], strict=True):
        if target is None or size.constant != 1:
            result.append(size if target is None else dimensions.unify(size, target, node))
        else:
            result.append(target)
    return tuple(size if size is not None else Poly(1) for size in result)


def expand_as(call: Call, dimensions: Dimensions) -> Value:
    """Repeats dimensions of size 1 up to another tensor's shape."""
    other = dimensions.tensor(call["other"])
    return _expand(call.node, dimensions.tensor(call["self"]), other, dimensions)


def view_as(call: Call, dimensions: Dimensions) -> Value:
    """A reshape to another tensor's shape."""
    source, other = dimensions.tensor(call["self"]), dimensions.tensor(call["other"])
    return reshape(dimensions, call.node, source, other, dimensions.present(call.node))


def repeat(call: Call, dimensions: Dimensions) -> Value:
    """Tiles dimensions; the counts are ratios that stay."""
    source = dimensions.tensor(call["self"])
    name = "repeats" if "repeats" in call.values else "dims"
    counts = [count or Poly(1) for count in dimensions.sizes(call, name, ratio=True)]
    rank = max(len(counts), len(source))
    shape = (Poly(1),) * (rank - len(source)) + source
    counts = [Poly(1)] * (rank - len(counts)) + counts
    pairs = zip(counts, shape, strict=True)
    return tuple(dimensions.widths.flattened(pair) for pair in pairs)


def repeat_interleave(call: Call, dimensions: Dimensions) -> Value:
    """Repeats each slice of a dimension a fixed number of times."""
    source = dimensions.tensor(call["self"])
    if call.get("dim") is None:
        source = (dimensions.widths.flattened(source),)
    axis = axis_of(call.get("dim") or 0, len(source))
    count = dimensions.size(call["repeats"], call.node, call.paths["repeats"], ratio=True)
    return (*source[:axis], dimensions.widths.flattened([source[axis], count]), *source[axis + 1 :])


def cat(call: Call, dimensions: Dimensions) -> Value:
    """Joins tensors along a dimension; their other dimensions are equal."""
    shapes = [dimensions.tensor(item) for item in call["tensors"]]
    rank = max(len(shape) for shape in shapes)
    shapes = [shape for shape in shapes if len(shape) == rank]
    axis = axis_of(call.get("dim", 0), rank)
    for shape in shapes[1:]:
        for other in set(range(rank)) - {axis}:
            dimensions.unify(shapes[0][other], shape[other], call.node)
    total = sum((shape[axis] for shape in shapes), Poly(0))
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
        raise Unsolved("a width is cut at a place known at run time only")
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
    part = dimensions.widths.fresh(size // step)
    dimensions.unify(width, part * step, call.node)
    return part


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


def pixel_shuffle(call: Call, dimensions: Dimensions) -> Value:
    """C·r² channels to C channels of r-fold resolution."""
    source, factor = dimensions.tensor(call["self"]), call["upscale_factor"]
    channels = dimensions.widths.fresh(dimensions.widths.value(source[-3]) // factor**2)
    dimensions.unify(source[-3], channels * factor**2, call.node)
    return (*source[:-3], channels, *(size * factor for size in source[-2:]))


def pixel_unshuffle(call: Call, dimensions: Dimensions) -> Value:
    """C channels to C·r² channels of 1/r of the resolution."""
    source, factor = dimensions.tensor(call["self"]), call["downscale_factor"]
    return (*source[:-3], source[-3] * factor**2, *dimensions.present(call.node)[-2:])


def channel_shuffle(call: Call, dimensions: Dimensions) -> Value:
    """Channels in interleaved order; their number is a multiple of the groups."""
    source, groups = dimensions.tensor(call["self"]), call["groups"]
    part = dimensions.widths.fresh(dimensions.widths.value(source[1]) // groups)
    dimensions.unify(source[1], part * groups, call.node)
    return source


def complex_pairs(call: Call, dimensions: Dimensions) -> Value:
    """Pairs of numbers as complex ones."""
    source = dimensions.tensor(call["self"])
    dimensions.pin_axis(source, -1, "real and imaginary part")
    return source[:-1]


def real_pairs(call: Call, dimensions: Dimensions) -> Value:
    """Complex numbers as pairs."""
    return (*dimensions.tensor(call["self"]), Poly(2))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "_reshape_copy", "view_copy"), view),
    "flatten": flatten,
    "ravel": flatten,
    "unflatten": unflatten,
    "squeeze": squeeze,
    "squeeze_copy": squeeze,
    "unsqueeze": unsqueeze,
    "unsqueeze_copy": unsqueeze,
    "permute": permute,
    "permute_copy": permute,
    "transpose": transpose,
    "transpose_copy": transpose,
    "swapaxes": transpose,
    "swapdims": transpose,
    "t": transpose,
    "mT": transpose,
    "adjoint": transpose,
    "numpy_T": reverse,
    "movedim": movedim,
    "moveaxis": movedim,
    "expand": expand,
    "expand_copy": expand,
    "broadcast_to": expand,
    "expand_as": expand_as,
    "view_as": view_as,
    "reshape_as": view_as,
    "repeat": repeat,
    "tile": repeat,
    "repeat_interleave": repeat_interleave,
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
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "view_as_complex": complex_pairs,
    "view_as_real": real_pairs,
}
