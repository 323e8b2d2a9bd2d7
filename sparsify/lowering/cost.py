"""Decides without measuring whether a node is faster sparse.

A node is a product of a weight [out, k] with `columns` columns (rows of activations, output pixels):

    dense  = max(2 · out · k · columns / DENSE_RATE, 4 · out · k / STREAM)
    sparse = call + pack · (k + out) · columns + 2 · nonzeros · columns / speed
    speed  = rate · columns / (columns + half)

Only ratios of these decide, and they carry over between machines better than times do; `tune` measures
where that is not good enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.graph import Graph

DENSE_RATE = 125.0  # FLOP/ns of ONNX Runtime's matrix products and convolutions
STREAM = 22.0  # bytes/ns at which dense weights are read when they are used once


@dataclass(frozen=True)
class Kernel:
    """What the csr kernels of one operator cost.

    Attributes:
        call: ns that a node costs whatever its size.
        pack: ns an element of input or output that is brought into panels and back.
        rate: FLOP/ns on many columns.
        half: Columns at which half of that is reached.
    """

    call: float
    pack: float
    rate: float
    half: float


# Fitted to one thread of an AVX-512 server core (2 FMA units, 2.5 GHz), float32, beside ONNX Runtime 1.31 in
# the same process. LINEAR: layers 32…2048 wide with 1, 16, 128 rows, densities 0.05…0.5, with an earlier
# version of the kernels, whose part for linear layers has changed little since. CONV: 16 shapes, among them
# ResNet-50's 3×3 convolutions of stride 1 and maps of 4×4 and 8×8, 1×1 and 3×3, batch 1, 8 and 64, densities
# 0.1, 0.25, 0.5: 92 times, which it meets within a quarter (root mean square of the logarithm). DENSE_RATE
# was left as it was: dense convolutions on small maps run at 60…100. Of these 92 comparisons the rule makes
# 49 sparse, the slowest of them 1.14× as fast as dense; of the others 19 would have gained 1.15× or more.
LINEAR = Kernel(call=4e3, pack=0.45, rate=85.0, half=14.0)
CONV = Kernel(call=10e3, pack=0.30, rate=75.0, half=8.0)

WORTHWHILE = 1.1
"""Estimated speedup from which a node becomes sparse: the mean over what its columns may be."""

ACCEPTABLE = 0.95
"""Estimated speedup that a sparse node must keep at every number of columns."""

_ROWS = (1, 16, 128)
_SEQUENCE_ROWS = (16, 128, 1024)
_SIDE = 14


@dataclass(frozen=True)
class Decision:
    """What a node becomes.

    Attributes:
        layout: Packed layout, or None to stay dense.
        reason: Why, in a sentence.
    """

    layout: str | None
    reason: str


def decide(candidate: Candidate, graph: Graph, *, forced: str | None = None) -> Decision:
    """Chooses between dense and csr.

    Args:
        candidate: A matched node.
        graph: The indexed graph, for sizes of values.
        forced: Layout to take whatever the estimate says, or "dense".
    """
    if forced is not None:
        return Decision(None if forced == "dense" else forced, f"{forced} was asked for")
    sizes = columns(candidate, graph)
    gains = [speedup(candidate, size) for size in sizes]
    gain = math.exp(sum(map(math.log, gains)) / len(gains))
    density = candidate.density
    span = " to ".join(str(size) for size in sorted({sizes[0], sizes[-1]}))
    where = f"at density {density:.2f} on {span} columns"
    if gain >= WORTHWHILE and min(gains) >= ACCEPTABLE:
        return Decision("csr", f"estimated {gain:.1f}× as fast as dense {where}")
    if speedup(candidate, sizes[-1], density=0.0) < WORTHWHILE:
        return Decision(None, f"too small: the call would cost more than the zeros save, {where}")
    return Decision(None, f"estimated {min(gain, *gains):.2f}× as fast as dense {where}")


def speedup(candidate: Candidate, size: int, *, density: float | None = None) -> float:
    """Estimated dense time over sparse time.

    Args:
        candidate: A matched node.
        size: Number of columns.
        density: Another density than the weight's.
    """
    outputs, *taps = (int(dim) for dim in candidate.weight.shape)
    k = math.prod(taps)
    kept = candidate.density if density is None else density
    dense = max(2.0 * outputs * k * size / DENSE_RATE, 4.0 * outputs * k / STREAM)
    kernel = LINEAR if candidate.geometry is None else CONV
    speed = kernel.rate * size / (size + kernel.half)
    sparse = kernel.call + kernel.pack * (k + outputs) * size + 2.0 * kept * outputs * k * size / speed
    return dense / sparse


def columns(candidate: Candidate, graph: Graph) -> tuple[int, ...]:
    """Numbers of columns that a node may see, smallest first; one where the shapes are in the file.

    Args:
        candidate: A matched node.
        graph: The indexed graph.
    """
    if candidate.geometry is not None:
        return (_pixels(graph.shapes.get(graph.nodes[candidate.index].output[0], ())),)
    shape = graph.shapes.get(candidate.x, (None, None))[:-1]
    known = math.prod(dim for dim in shape if isinstance(dim, int))
    if all(isinstance(dim, int) for dim in shape):
        return (max(1, known),)
    rows = _SEQUENCE_ROWS if len(shape) > 1 else _ROWS
    return tuple(known * count for count in rows)


def _pixels(shape: tuple[int | str | None, ...]) -> int:
    batch = shape[0] if shape and isinstance(shape[0], int) else 1
    sides = [dim if isinstance(dim, int) else _SIDE for dim in shape[2:]] or [_SIDE, _SIDE]
    return max(1, batch * math.prod(sides))
