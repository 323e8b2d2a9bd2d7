"""Decides what is sparse on a GPU, from bytes and FLOPs alone: no measurement has tested it yet.

The device is NVIDIA's H100 SXM as its data sheet describes it; dense means cuBLAS and cuDNN on tensor cores
in TF32, ONNX Runtime's default. A node is a product of a weight [out, k] with `columns` columns. Each
costs a launch and

    dense   max(2 · out · k · columns / (attained · TF32), 4 · (out · k + (out + k) · columns) / bandwidth)
    gather  max(bytes of W once from memory and again from the cache for every further 4 columns, gathers)
    tile    max(bytes of W and of X and Y, turns · cycles / (attained · clock · multiprocessors))

Up to `FEW` rows a linear layer is gathered. Above, and in convolutions, a turn is one block of R weights on
32 columns: it takes at least R / 4 cycles of a multiprocessor's 128 multipliers, and one of its 128 bytes of
shared memory a cycle for x, with what is staged of the weight shared by two turns. So csr reaches at most a
quarter of the float32 rate, which is a thirtieth of the TF32 rate: at many columns only wide blocks can win,
and at few columns whatever reads fewest bytes. N:M weights have no form of their own here: they count as csr.

docs/design/cuda-runtime.md derives the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.cost import ACCEPTABLE, WORTHWHILE, Decision, Shapes, columns, span, storage
from sparsify.lowering.graph import Graph
from sparsify.runtime import layouts

BANDWIDTH = 3350.0
"""Bytes a ns from memory."""

CACHE = 5500.0
"""Bytes a ns from the second-level cache."""

TF32 = 494_700.0
"""FLOPs a ns of the tensor cores, dense."""

CYCLES = 132 * 1.98
"""Cycles a ns of all multiprocessors together."""

ATTAINED = 0.6
"""Share of a peak that dense and sparse kernels are taken to reach alike."""

LAUNCH = 2500.0
"""ns of any launch."""

GATHER = 16.0
"""Cycles that 32 reads at random take in the first-level cache."""

FEW = 8
"""Rows of X up to which a linear layer is gathered, four at a time."""

NOTE = "by the bytes and FLOPs of an H100, which no measurement has tested (dense: TF32)"
"""Said with every decision."""

_NEARLY_FULL = 0.995


def decide_gpu(candidate: Candidate, graph: Graph, shapes: Sequence[Shapes] = ()) -> Decision:
    """Chooses between dense and the layouts that fit the weight, for CUDAExecutionProvider.

    Args:
        candidate: A matched node.
        graph: The indexed graph, for sizes of values.
        shapes: Shapes of the graph's values at the sizes to decide for; without them, what the file says.
    """
    if candidate.density > _NEARLY_FULL:
        return Decision(None, f"its weight has next to no zeros (density {candidate.density:.2f})")
    sizes = columns(candidate, graph, shapes)
    gains = {
        layout: [gpu_speedup(candidate, size, layout=layout, stored=count) for size in sizes]
        for layout, count in storage(candidate).items()
    }
    best = max(gains, key=lambda layout: _mean(gains[layout]))
    where = f"at density {candidate.density:.2f} on {span(candidate, sizes)}, {NOTE}"
    others = ", ".join(f"{name} {_mean(gains[name]):.2f}×" for name in gains if name != best)
    said = f"estimated {_mean(gains[best]):.2f}× as fast as dense as {best} {where}"
    said += f" ({others})" if others else ""
    pays = _mean(gains[best]) >= WORTHWHILE and min(gains[best]) >= ACCEPTABLE
    return Decision(best if pays else None, said)


def gpu_speedup(candidate: Candidate, size: int, *, layout: str, stored: int | None = None) -> float:
    """Estimated dense time over sparse time on the GPU.

    Args:
        candidate: A matched node.
        size: Number of columns: rows of X, or output pixels.
        layout: One of `layouts.LAYOUTS`.
        stored: Weights that the layout stores; those of the candidate's weight if not given.
    """
    outputs, inputs, *taps = (int(dim) for dim in candidate.weight.shape)
    k = inputs * math.prod(taps)
    entries = layouts.stored(candidate.weight, layout) if stored is None else stored
    moved = 4.0 * (inputs + outputs) * size / BANDWIDTH
    dense = max(2.0 * outputs * k * size / (ATTAINED * TF32), 4.0 * outputs * k / BANDWIDTH + moved)
    rows = layouts.block_rows(layout)
    if candidate.geometry is not None:
        sparse = max(_weight_bytes(entries, rows) / BANDWIDTH + moved, _turns(entries, rows, size, conv=True))
    elif size <= FEW:
        sparse = _gather(entries, rows, size) + moved
    else:
        sparse = max(
            _weight_bytes(entries, rows) / BANDWIDTH + moved, _turns(entries, rows, size, conv=False)
        )
    return (LAUNCH + dense) / (LAUNCH + sparse)


def _weight_bytes(entries: int, rows: int) -> float:
    return (4.0 + 2.0 / rows) * entries


def _gather(entries: int, rows: int, size: int) -> float:
    read = _weight_bytes(entries, rows)
    again = -(-size // 4) - 1
    reads = max(1, rows // 4) * entries / rows  # lanes of one entry read the same x
    return max(read / BANDWIDTH + again * read / CACHE, reads * size / 32 * GATHER / CYCLES)


def _turns(entries: int, rows: int, size: int, *, conv: bool) -> float:
    """ns of all turns: a block of weights on 32 columns."""
    groups = -(-size // 32)
    staged = (3 if conv else 1) + -(-rows // 4)
    shared = 1.0 + staged / (2 if groups > 1 else 1)
    issued = (rows + (6 if conv else 0)) / 4.0
    return entries / rows * groups * max(shared, issued) / (ATTAINED * CYCLES)


def _mean(gains: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, gains)) / len(gains))
