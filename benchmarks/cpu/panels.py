"""How the sparse kernels cut the inputs of a product into tiles.

This is the design of `kernels/csr/panel_plan.cc` and `conv_flat.cc`: shapes, layout and what kernels are
tuned for decide, nothing is asked of a running kernel. A test holds the constants against the sources.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from sparsify.runtime.library import tuned_cache, tuned_deep

GROUP = 16
MOST_GROUPS = 4
PANEL_COLUMNS = GROUP * MOST_GROUPS
SPACING = (0, 16, 32, 64, 64, 80)
STREAM_BYTES = 4 << 10
FEWEST_STREAMING = 4
FLAT_TILE_FLOATS = 56 * PANEL_COLUMNS
MOST_INPUTS = 1008
SHORTEST = 64
FULL_TILE, FULL_NARROW_TILE = 0.9, 1.1
MOST_COUNT = 32
FEWEST_BLOCK_ROWS = 4
DENSE_BLOCK_ROWS = 4
DENSE_SHARE = 0.18
LARGEST_TILE = 0.75
MOST_COLUMNS = 1.25


@dataclass(frozen=True)
class Tuning:
    """What kernels are tuned for, as in `base/tuning.h`.

    Attributes:
        l1_bytes: A core's first-level data cache.
        deep: Whether the CPU looks far ahead by itself.
    """

    l1_bytes: int
    deep: bool


SKYLAKE = Tuning(32 << 10, deep=False)
SAPPHIRE_RAPIDS = Tuning(48 << 10, deep=True)


def of_this_process() -> Tuning:
    """What the kernels of this process are tuned for."""
    return Tuning(tuned_cache(1), tuned_deep())


@dataclass(frozen=True)
class Image:
    """What a convolution reads and writes.

    Attributes:
        count: Images.
        size: Height and width of the input.
        out: Height and width of the output.
    """

    count: int
    size: tuple[int, int]
    out: tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """The tiles of a product.

    Attributes:
        tiles: How many the inputs are cut into.
        packed: Floats that are written into panels, for all columns.
        panels: How many the columns are cut into, each of which takes every weight once.
    """

    tiles: int
    packed: float
    panels: int


@dataclass(frozen=True)
class FlatShape:
    """Rows of pixels laid end to end.

    Attributes:
        columns: Columns of an image.
        width: Columns of a panel.
        floats: Floats of a channel in a tile.
    """

    columns: int
    width: int
    floats: int


def tiling(
    shape: Sequence[int], nonzeros: int, columns: int, rows: int, image: Image | None, tuned: Tuning
) -> Tiling:
    """The tiles of a product of more than a few columns.

    Args:
        shape: Dense shape of the weight, outputs first.
        nonzeros: Weights stored.
        columns: Rows of activations, or output pixels.
        rows: Outputs that share a stored input.
        image: Of a convolution; None for a linear layer.
        tuned: What kernels are tuned for.
    """
    crowded = tuned.deep and rows == DENSE_BLOCK_ROWS and nonzeros / math.prod(shape) >= DENSE_SHARE
    if image is not None and not crowded:
        flat = flat_shape(shape[2:], image)
        if _is_preferred(flat, math.prod(shape[2:]), rows, image):
            tiles = math.ceil(shape[1] / max(1, FLAT_TILE_FLOATS // flat.floats))
            panels = image.count * _panel_count(_groups(flat.columns), MOST_GROUPS)
            return Tiling(tiles, float(panels * shape[1] * flat.floats), panels)
    groups, most = _groups(columns), 2 if rows >= 8 else MOST_GROUPS
    inputs = math.prod(shape[1:])
    tiles = _gathered_tiles(inputs, nonzeros / shape[0], rows, _widest(groups, most), tuned)
    return Tiling(tiles, inputs * columns, _panel_count(groups, most))


def _gathered_tiles(inputs: int, row_nonzeros: float, rows: int, groups: int, tuned: Tuning) -> int:
    spacing = SPACING[groups]
    floats = (tuned.l1_bytes - (0 if rows >= FEWEST_STREAMING else STREAM_BYTES)) // 4
    longest = min(floats // spacing, MOST_INPUTS)
    if rows == 1:  # where a row brings more than its unrolled code takes, it is visited twice
        share = FULL_TILE if spacing >= PANEL_COLUMNS else FULL_NARROW_TILE
        longest = min(longest, max(SHORTEST, int(share * MOST_COUNT * inputs / max(row_nonzeros, 1.0))))
    even = math.ceil(inputs / math.ceil(inputs / longest))
    return math.ceil(inputs / (math.ceil(even / GROUP) * GROUP))


def flat_shape(kernel: Sequence[int], image: Image) -> FlatShape:
    """How rows of pixels are laid out for a kernel whose padding keeps sizes, up to its stride.

    Args:
        kernel: Height and width.
        image: What is read and written.
    """
    stride = tuple(max(1, round(size / out)) for size, out in zip(image.size, image.out, strict=True))
    phases: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for tap in product(*(range(size) for size in kernel)):
        at = [place - (size - 1) // 2 for place, size in zip(tap, kernel, strict=True)]
        phase = (at[0] % stride[0], at[1] % stride[1])
        phases.setdefault(phase, []).append((at[0] // stride[0], at[1] // stride[1]))
    height, width = image.out
    pitch = width
    for (_, left), taps in phases.items():
        held = len(range(left, image.size[1], stride[1]))
        reach = width + max(column for _, column in taps)
        zeros = max(0, -min(column for _, column in taps), reach - held)
        pitch = max(pitch, max(0, min(held, reach)) + zeros)
    columns = (height - 1) * pitch + width
    panel = SPACING[_widest(_groups(columns), MOST_GROUPS)]
    floats = 0
    for taps in phases.values():
        places = [row * pitch + column for row, column in taps]
        floats += _groups(max(places) - min(places) + panel) * GROUP
    return FlatShape(columns, panel, floats)


def _is_preferred(flat: FlatShape, taps: int, rows: int, image: Image) -> bool:
    wanted = _groups(image.count * math.prod(image.out))
    return (
        rows >= FEWEST_BLOCK_ROWS
        and flat.floats <= FLAT_TILE_FLOATS
        and flat.floats <= LARGEST_TILE * flat.width * taps
        and image.count * _groups(flat.columns) <= MOST_COLUMNS * wanted
    )


def _groups(columns: int) -> int:
    return math.ceil(columns / GROUP)


def _panel_count(groups: int, most: int) -> int:
    left_alone = most == MOST_GROUPS and groups > most and groups % most == 1
    return math.ceil((groups - left_alone) / most)


def _widest(groups: int, most: int) -> int:
    return math.ceil(groups / _panel_count(groups, most))
