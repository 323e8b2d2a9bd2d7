"""Decides without measuring whether a node is faster sparse.

A node is a product of a weight [out, k] with `columns` columns (rows of activations, output pixels):

    dense  = max(2 · out · k · columns / DENSE_RATE, 4 · out · k / STREAM)
    sparse = CALL + PACK · (k + out) · columns + 2 · nonzeros · columns / rate(columns)
    rate   = SPARSE_RATE · columns / (columns + HALF_RATE)

Only ratios of these decide, and they carry over between machines better than times do; `tune` measures
where that is not good enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.graph import Graph

# Fitted to one thread of an AVX-512 server core (2 FMA units, 2.5 GHz), float32, ONNX Runtime 1.31 in the
# same process: linear layers 32…2048 wide with 1, 16, 128 rows and convolutions of ResNet-50's shapes,
# densities 0.05…0.5. Of those 204 comparisons, the rule below makes sparse none that measured slower by more
# than a fifth or by more than 10 µs.
DENSE_RATE = 125.0  # FLOP/ns of ONNX Runtime's matrix products and convolutions
STREAM = 22.0  # bytes/ns at which dense weights are read when they are used once
SPARSE_RATE = 85.0  # FLOP/ns of the csr kernels on many columns
HALF_RATE = 14.0  # columns at which they reach half of that
PACK = 0.45  # ns an element of input or output that is brought into panels and back
LINEAR_CALL = 4e3  # ns that a sparse linear node costs whatever its size
CONV_CALL = 15e3  # the same for a convolution, which also lays out its input

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
    rate = SPARSE_RATE * size / (size + HALF_RATE)
    call = LINEAR_CALL if candidate.geometry is None else CONV_CALL
    sparse = call + PACK * (k + outputs) * size + 2.0 * kept * outputs * k * size / rate
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
