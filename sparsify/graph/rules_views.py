"""Rules of operators that rearrange dimensions: reshapes, permutations and expansions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch.fx import Node

from sparsify.graph.dimensions import Call, Dimensions, Dims, Value, axis_of
from sparsify.graph.poly import Poly
from sparsify.graph.reshape import reshape
from sparsify.graph.rules_elementwise import Rule


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


def pixel_shuffle(call: Call, dimensions: Dimensions) -> Value:
    """C·r² channels to C channels of r-fold resolution."""
    source, factor = dimensions.tensor(call["self"]), call["upscale_factor"]
    channels = dimensions.part(source[-3], factor**2, inner=True)
    return (*source[:-3], channels, *(size * factor for size in source[-2:]))


def pixel_unshuffle(call: Call, dimensions: Dimensions) -> Value:
    """C channels to C·r² channels of 1/r of the resolution."""
    source, factor = dimensions.tensor(call["self"]), call["downscale_factor"]
    channels = dimensions.widths.flattened((source[-3], Poly(factor**2)))
    return (*source[:-3], channels, *dimensions.present(call.node)[-2:])


def im2col(call: Call, dimensions: Dimensions) -> Value:
    """Windows as columns: C channels to C·k rows, k the size of a window."""
    source, recorded = dimensions.tensor(call["self"]), dimensions.present(call.node)
    dimensions.pin(source[-2:], "extent in space, not a width")
    rows = dimensions.widths.flattened((source[-3], Poly(prod(call["kernel_size"]))))
    return (*source[:-3], rows, recorded[-1])


def col2im(call: Call, dimensions: Dimensions) -> Value:
    """Columns added up to an image: C·k rows to C channels."""
    source, recorded = dimensions.tensor(call["self"]), dimensions.present(call.node)
    channels = dimensions.part(source[-2], prod(call["kernel_size"]), inner=True)
    return (*source[:-2], channels, *recorded[-2:])


def channel_shuffle(call: Call, dimensions: Dimensions) -> Value:
    """Channels in interleaved order; their number is a multiple of the groups."""
    source, groups = dimensions.tensor(call["self"]), call["groups"]
    rest = dimensions.part(source[1], groups)
    return (source[0], dimensions.widths.flattened((rest, Poly(groups))), *source[2:])


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
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "im2col": im2col,
    "col2im": col2im,
    "view_as_complex": complex_pairs,
    "view_as_real": real_pairs,
}
