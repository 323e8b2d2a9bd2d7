"""Decides what is sparse on a GPU, from bytes and FLOPs alone: no measurement has tested it yet.

The device is NVIDIA's H100 SXM as its data sheet describes it; dense means cuBLAS and cuDNN on tensor cores
in TF32, ONNX Runtime's default. A node is a product of a weight [out, k] with `columns` columns. Each
costs a launch and

    dense   max(2 · out · k · columns / (attained · TF32), 4 · (out · k + (out + k) · columns) / bandwidth)
    gather  max(bytes of W once from memory and again from the cache for every further 4 columns, gathers)
    tile    max(bytes of W, X and Y from memory, bytes of W and X that all blocks of threads read from the
            cache, turns · cycles / (attained · clock · multiprocessors that have a block))

Up to `FEW` rows a linear layer is gathered. Above, and in convolutions, a turn is one block of R weights on
32 columns: it takes at least R / 4 cycles of a multiprocessor's 128 multipliers, and one of its 128 bytes of
shared memory a cycle for x, with what is staged of the weight shared by two turns. From `TENSOR` rows on,
blocks of 8 and 16 go to tensor cores: a turn then gathers x from shared memory at random, and three TF32
products stand for one of float32. Every block of threads reads all of X's inputs for its columns, so what
bounds a sparse product is the cache as a rule. N:M weights have no form of their own here: they count as csr.

docs/design/cuda-runtime.md derives the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.cost import (
    Decision,
    Shapes,
    Times,
    columns,
    mean_gain,
    nearly_full,
    pays,
    span,
    storage,
)
from sparsify.lowering.graph import Graph
from sparsify.runtime import layouts

WORTHWHILE = 1.1
"""Estimated speedup from which a node becomes sparse."""

BANDWIDTH = 3350.0
"""Bytes a ns from memory."""

CACHE = 5500.0
"""Bytes a ns from the second-level cache."""

TF32 = 494_700.0
"""FLOPs a ns of the tensor cores, dense."""

MULTIPROCESSORS = 132

CLOCK = 1.98
"""Cycles a ns."""

ATTAINED = 0.6
"""Share of a peak that dense and sparse kernels are taken to reach alike."""

LAUNCH = 2500.0
"""ns of any launch."""

GATHER = 16.0
"""Cycles that 32 reads at random take in the first-level cache."""

FEW = 8
"""Rows of X up to which a linear layer is gathered, four at a time."""

TENSOR = 16
"""Rows of X from which on blocks of 8 and 16 outputs go to tensor cores."""

CONFLICTS = 2.125
"""Cycles that 32 lanes need to read 8 columns at each of 4 random inputs from 32 banks, in the mean."""

NOTE = "by the bytes and FLOPs of an H100, which no measurement has tested (dense: TF32)"
"""Said with every decision."""


def decide_gpu(candidate: Candidate, graph: Graph, shapes: Sequence[Shapes] = ()) -> Decision:
    """Chooses between dense and the layouts that fit the weight, for CUDAExecutionProvider.

    Args:
        candidate: A matched node.
        graph: The indexed graph, for sizes of values.
        shapes: Shapes of the graph's values at the sizes to decide for; without them, what the file says.
    """
    if (full := nearly_full(candidate)) is not None:
        return full
    sizes = columns(candidate, graph, shapes)
    gains = {
        layout: [gpu_times(candidate, size, layout=layout, stored=count).speedup for size in sizes]
        for layout, count in storage(candidate).items()
    }
    best = max(gains, key=lambda layout: mean_gain(gains[layout]))
    where = f"at density {candidate.density:.2f} on {span(candidate, sizes)}, {NOTE}"
    others = ", ".join(f"{name} {mean_gain(gains[name]):.2f}×" for name in gains if name != best)
    said = f"estimated {mean_gain(gains[best]):.2f}× as fast as dense as {best} {where}"
    said += f" ({others})" if others else ""
    return Decision(best if pays(gains[best], WORTHWHILE) else None, said)


def gpu_times(candidate: Candidate, size: int, *, layout: str, stored: int | None = None) -> Times:
    """Estimated times of a node on the GPU, a launch of each included.

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
    read = _weight_bytes(entries, rows) / BANDWIDTH + moved
    if candidate.geometry is not None:
        sparse = max(read, _turns(entries, rows, size))
    elif size <= FEW:
        sparse = _gather(entries, rows, size) + moved
    else:
        sparse = max(read, _tiles(entries, rows, outputs, k, size))
    return Times(LAUNCH + dense, LAUNCH + sparse)


def _weight_bytes(entries: int, rows: int) -> float:
    return (4.0 + 2.0 / rows) * entries


def _gather(entries: int, rows: int, size: int) -> float:
    read = _weight_bytes(entries, rows)
    again = -(-size // 4) - 1
    reads = max(1, rows // 4) * entries / rows  # lanes of one entry read the same x
    cycles = reads * size / 32 * GATHER
    return max(read / BANDWIDTH + again * read / CACHE, cycles / (MULTIPROCESSORS * CLOCK))


def _turns(entries: int, rows: int, size: int) -> float:
    """ns of a convolution's turns: a block of weights on 32 pixels."""
    groups = -(-size // 32)
    shared = 1.0 + (3 + -(-rows // 4)) / (2 if groups > 1 else 1)
    cycles = entries / rows * groups * max(shared, (rows + 6) / 4.0)
    return cycles / (ATTAINED * CLOCK * MULTIPROCESSORS)


def _tiles(entries: int, rows: int, outputs: int, inputs: int, size: int) -> float:
    """ns of a linear layer whose columns wait in shared memory, cut as native/cuda/products.cc does."""
    on_tensor_cores = rows >= 8 and size >= TENSOR
    lines = -(-outputs // rows)
    if on_tensor_cores:
        width, each = 32, 8 * 64 // rows
        while each > 128 // rows and 3 * -(-size // width) * -(-lines // each) < 2 * MULTIPROCESSORS:
            each //= 2
    else:
        width, each = 64, {16: 4, 8: 8}.get(rows, 64 // rows)
        if -(-size // width) * -(-lines // each) < MULTIPROCESSORS:
            width = 32
    panels, groups = -(-size // width), -(-lines // each)
    cached = (_weight_bytes(entries, rows) * panels + 4.0 * inputs * size * groups) / CACHE
    if on_tensor_cores:
        cycles = max(CONFLICTS, 0.75 * rows / 8)
    else:
        cycles = max(1.0 + (1 + -(-rows // 4)) / (width // 32), rows / 4.0)
    staged = inputs * groups  # one store of 32 columns each
    busy = min(MULTIPROCESSORS, panels * groups)
    spent = (entries / rows * cycles + staged) * panels * width / 32
    return max(cached, spent / (ATTAINED * CLOCK * busy))
