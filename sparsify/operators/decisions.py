"""Which layers run sparse, and why the others do not.

The estimate counts what a training step of a layer costs, in nanoseconds of one thread: a dense one for each
weight and row of the batch, more in a narrow layer; a sparse one for each active weight and row, for bringing
the rows of inputs and outputs into panels and back, for reading the weight and writing its gradient where
they lie, dense, and for the calls. A convolution's rows are pixels; its tiles are gathered tap by tap, and
where it has a stride, its input and that input's gradient are copied. The figures are fitted to
docs/results/sparse_training/README.md's; mostly their ratios count.
"""

from __future__ import annotations

from dataclasses import dataclass

DENSE = 0.052
NARROW = 48
ACTIVE = 0.12
PANELS = 1.6
STORED = 0.6
CALLS = 200e3
DENSE_CONV = 0.042
NARROW_CONV = 16
ACTIVE_CONV = 0.09
TILES = 0.16
PIXELS = 2.0
ROWS = 512
LEAST_GAIN = 1.15


@dataclass(frozen=True)
class Decision:
    """What `accelerate` decided about one masked layer.

    Attributes:
        fqn: Path of the layer.
        kind: Its class.
        density: Share of active weights.
        sparse: Whether it runs sparse.
        reason: Why, in a sentence.
    """

    fqn: str
    kind: str
    density: float
    sparse: bool
    reason: str


def estimated_gain(out_features: int, in_features: int, density: float, rows: int = ROWS) -> float:
    """Time of a dense training step of a linear layer over that of a sparse one, on a CPU.

    Args:
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        density: Share of active weights.
        rows: Of the batch.
    """
    weights = out_features * in_features
    dense = DENSE * (1 + NARROW / min(out_features, in_features)) * weights * rows
    panels = PANELS * (out_features + in_features) * rows
    return dense / (ACTIVE * density * weights * rows + panels + STORED * weights + CALLS)


def estimated_conv_gain(weight: tuple[int, ...], density: float, strides: tuple[int, ...] = (1, 1)) -> float:
    """Time of a dense training step of a convolution over that of a sparse one, on a CPU.

    All is counted for one pixel of the output; how many there are does not matter much beyond a few hundred.

    Args:
        weight: Sizes of the weight [out, in, kernel height, kernel width].
        density: Share of active weights.
        strides: Vertical, horizontal.
    """
    out_channels, in_channels, height, width = weight
    taps, area = height * width, strides[0] * strides[1]
    weights = out_channels * in_channels * taps
    dense = DENSE_CONV * (1 + NARROW_CONV / min(out_channels, in_channels)) * weights
    tiles = TILES * taps * (2 * in_channels + out_channels)
    pixels = in_channels * (area if area == 1 else 2 * area) + out_channels
    return dense / (ACTIVE_CONV * density * weights + tiles + PIXELS * pixels)
