"""Decides without measuring whether a node is faster sparse, and in which layout.

A node is a product of a weight [out, k] with `columns` columns (rows of activations, output pixels). On one
thread

    dense  = max(2 · out · k · columns / dense rate, 4 · out · k / memory)
    sparse = call + pack · (held + out) · columns + max(2 · stored · columns / speed, bytes / memory)
    speed  = rate · columns / (columns + half)

with the numbers of `kernel_costs`, `stored` the entries that the layout keeps, zeros inside blocks included,
and `held` the inputs that are packed for a column: k, or less where convolutions pack rows of pixels. What is
too large for the caches costs more to pack. Several threads share everything but the call. `tune` measures
where that is not good enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.graph import Graph
from sparsify.lowering.kernel_costs import (
    CONVERT,
    COSTS,
    FAR,
    FAR_PACK,
    FORK,
    STEP,
    InstructionSet,
    Kernel,
    Memory,
)
from sparsify.runtime import layouts
from sparsify.runtime.library import selected_kernel, tuned_deep

WORTHWHILE = 1.15
"""Estimated speedup from which a node becomes sparse: the mean over what its columns may be. What is lost by
caution is found again by tuning."""

BESIDE_ATTENTION = 1.0
"""The same for projections around an attention that becomes one operator if one of them is sparse: that saves
more than they may lose."""

ACCEPTABLE = 1.0
"""Estimated speedup that a sparse node must keep at every number of columns."""

FILL = 1.25
"""A layout is looked at where it stores at most so many entries for each non-zero."""

FLAT_ROWS = 4
"""Outputs of a block from which convolutions keep rows of pixels in a tile and do not gather every tap."""

_ROWS = (1, 16, 128)
_SEQUENCE_ROWS = (16, 128, 1024)
_SIDE = 14
_NEARLY_FULL = 0.995

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Machine:
    """What a decision is made for.

    Attributes:
        kernel: Instruction set of the kernels, by its name in the kernel table.
        threads: Threads within an operator.
        target: Where files run: a key of `runtime.bench_provider.PROVIDERS`.
        deep: Whether kernels take the CPU for one that looks far ahead by itself (docs/design/tuning.md).
    """

    kernel: str = "avx512"
    threads: int = 1
    target: str = "cpu"
    deep: bool = False

    @classmethod
    def here(cls, threads: int | None = None, target: str = "cpu") -> Machine:
        """This machine.

        Args:
            threads: Threads within an operator; one if not given.
            target: Where files run.

        Raises:
            RuntimeLibraryError: The native library is missing.
        """
        return cls(selected_kernel(), threads or 1, target, tuned_deep())

    @property
    def costs(self) -> InstructionSet:
        """Its row of the cost table."""
        names = (f"{self.kernel}-deep", self.kernel) if self.deep else (self.kernel,)
        return next((COSTS[name] for name in names if name in COSTS), COSTS["scalar"])


@dataclass(frozen=True)
class Decision:
    """What a node becomes.

    Attributes:
        layout: Packed layout, or None to stay dense.
        reason: Why, in a sentence.
    """

    layout: str | None
    reason: str


class Times(NamedTuple):
    """Estimated ns of a node.

    Attributes:
        dense: As ONNX Runtime runs it.
        sparse: As a sparse operator in some layout.
    """

    dense: float
    sparse: float

    @property
    def speedup(self) -> float:
        """Dense time over sparse time."""
        return self.dense / self.sparse


def storage(candidate: Candidate) -> dict[str, int]:
    """Entries that each applicable layout stores of a candidate's weight, csr first.

    A layout is applicable where it stores at most `FILL` entries for each non-zero. Wider blocks never store
    fewer, so the first that store too many end the search.
    """
    nonzeros = int(np.count_nonzero(candidate.weight))
    counts = {"csr": nonzeros}
    for layout in sorted(layouts.LAYOUTS, key=layouts.block_rows):
        if layout != "csr":
            count = layouts.stored(candidate.weight, layout)
            if count > FILL * nonzeros:
                break
            counts[layout] = count
    return counts


def decide(
    candidate: Candidate,
    graph: Graph,
    machine: Machine,
    *,
    forced: str | None = None,
    shapes: Sequence[Shapes] = (),
    converted: tuple[bool, bool] = (False, False),
    worthwhile: float = WORTHWHILE,
) -> Decision:
    """Chooses between dense and the layouts that fit the weight.

    Args:
        candidate: A matched node.
        graph: The indexed graph, for sizes of values.
        machine: Instruction set and threads to decide for.
        forced: Layout to take whatever the estimate says, or "dense".
        shapes: Shapes of the graph's values at the sizes to decide for; without them, what the file says.
        converted: Whether a convolution's input comes from dense ones, and its output goes to some.
        worthwhile: Estimated speedup from which it becomes sparse.
    """
    if forced is not None:
        return Decision(None if forced == "dense" else forced, f"{forced} was asked for")
    if (full := nearly_full(candidate)) is not None:
        return full
    sizes = columns(candidate, graph, shapes)
    where = f"at density {candidate.density:.2f} on {span(candidate, sizes)}"
    if any(converted):
        where += ", conversions beside dense convolutions included"
    kernels = _kernel_layouts(candidate, machine)
    estimate = partial(times, candidate, machine=machine, converted=converted)
    gains = {
        layout: [estimate(size, layout=layout, stored=count).speedup for size in sizes]
        for layout, count in storage(candidate).items()
        if layout in kernels
    }
    best = max(gains, key=lambda layout: mean_gain(gains[layout]))
    others = ", ".join(f"{name} {mean_gain(gains[name]):.1f}×" for name in gains if name != best)
    if pays(gains[best], worthwhile):
        reason = f"estimated {mean_gain(gains[best]):.1f}× as fast as dense as {best} {where}"
        if not pays(gains[best]):
            reason += ", and the attention beside it becomes one operator"
        return Decision(best, reason + (f" ({others})" if others else ""))
    return Decision(None, _why_dense(candidate, estimate, sizes, gains[best], where, worthwhile))


def _why_dense(
    candidate: Candidate,
    estimate: Callable[..., Times],
    sizes: Sequence[int],
    gains: Sequence[float],
    where: str,
    worthwhile: float,
) -> str:
    if estimate(sizes[-1], stored=0).speedup < worthwhile:
        return f"too small: the call and moving its inputs would cost more than the zeros save, {where}"
    if mean_gain(gains) >= worthwhile:
        worst = min(range(len(sizes)), key=lambda index: gains[index])
        slow = f"{gains[worst]:.2f}× as fast as dense on {span(candidate, sizes[worst : worst + 1])}"
        return f"estimated {slow}, though faster on others, {where}"
    said = f"estimated {mean_gain(gains):.2f}× as fast as dense {where}"
    for percent in range(60, 0, -5):
        stored = percent * candidate.weight.size // 100
        if pays([estimate(size, stored=stored).speedup for size in sizes], worthwhile):
            return f"{said}; it would pay from a density of about {percent / 100:.2f}"
    return said


def nearly_full(candidate: Candidate) -> Decision | None:
    """The decision about a weight that has next to no zeros; None where it has some."""
    if candidate.density <= _NEARLY_FULL:
        return None
    return Decision(None, f"its weight has next to no zeros (density {candidate.density:.2f})")


def pays(gains: Sequence[float], worthwhile: float = WORTHWHILE) -> bool:
    """Whether a node with these speedups, one for each size, becomes sparse."""
    return mean_gain(gains) >= worthwhile and min(gains) >= ACCEPTABLE


def mean_gain(gains: Sequence[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, gains)) / len(gains))


def span(candidate: Candidate, sizes: Sequence[int]) -> str:
    """How many columns a node may see, for reasons: "1 to 128 rows"."""
    what = "rows" if candidate.geometry is None else "pixels"
    first, last = min(sizes), max(sizes)
    if first == last:
        return f"{first} {what.removesuffix('s') if first == 1 else what}"
    return f"{first} to {last} {what}"


def _kernel_layouts(candidate: Candidate, machine: Machine) -> frozenset[str]:
    costs = machine.costs
    return frozenset(costs.linear if candidate.geometry is None else costs.conv)


def times(
    candidate: Candidate,
    size: int,
    machine: Machine,
    *,
    layout: str = "csr",
    stored: int | None = None,
    converted: tuple[bool, bool] = (False, False),
) -> Times:
    """Estimated times of a node.

    Args:
        candidate: A matched node.
        size: Number of columns.
        machine: Instruction set and threads.
        layout: A layout that the instruction set has numbers for.
        stored: Entries that the layout stores; those of the weight if not given.
        converted: Whether a convolution's input and its output are converted, since dense ones are there.
    """
    outputs, inputs, *taps = (int(dim) for dim in candidate.weight.shape)
    k = inputs * math.prod(taps)
    entries = layouts.stored(candidate.weight, layout) if stored is None else stored
    costs = machine.costs
    kernel = (costs.linear if candidate.geometry is None else costs.conv)[layout]
    dense = max(2.0 * outputs * k * size / costs.dense, costs.memory.read(4.0 * outputs * k))
    block_rows = layouts.block_rows(layout)
    sparse = product_time(kernel, costs.memory, candidate.weight.shape, size, entries, block_rows)
    sparse += STEP * size * (inputs * len(candidate.before) + outputs * len(candidate.after))
    sparse += CONVERT * size * (inputs * _steps(candidate) * converted[0] + outputs * converted[1])
    if machine.threads == 1:
        return Times(dense, kernel.call + sparse)
    used = costs.evenness * machine.threads
    return Times(FORK + dense / machine.threads, kernel.call + FORK + sparse / used)


def product_time(
    kernel: Kernel, memory: Memory, shape: Sequence[int], size: int, entries: int, block_rows: int
) -> float:
    """ns that a sparse kernel takes for a product, on one thread and without the call.

    Args:
        kernel: Its costs.
        memory: Where weights come from.
        shape: Of the weight, [out, in, *taps].
        size: Number of columns.
        entries: Stored entries.
        block_rows: Outputs of a block.
    """
    outputs, inputs, *taps = shape
    held = inputs * math.prod(taps)
    if taps and block_rows >= FLAT_ROWS:
        held = inputs * min(math.prod(taps), taps[0] + 1)
    paid = -(-size // kernel.group) * kernel.group
    speed = kernel.rate * paid / (paid + kernel.half)
    read = memory.read((4.0 + 2.0 / block_rows) * entries)
    pack = kernel.pack * (held + outputs) * size
    if taps and 4.0 * (inputs + outputs) * size > FAR:
        pack *= FAR_PACK
    return pack + max(2.0 * entries * paid / speed, read)


def _steps(candidate: Candidate) -> int:
    """Input pixels for each output pixel of a convolution."""
    return 1 if candidate.geometry is None else math.prod(candidate.geometry.strides)


def columns(candidate: Candidate, graph: Graph, shapes: Sequence[Shapes] = ()) -> tuple[int, ...]:
    """Numbers of columns that a node may see, smallest first; one where the shapes are in the file.

    Args:
        candidate: A matched node.
        graph: The indexed graph.
        shapes: Shapes of the graph's values at the sizes that matter, where they are given.
    """
    value = graph.nodes[candidate.index].output[0]
    outputs = int(candidate.weight.shape[0])
    given = {max(1, math.prod(at[value]) // outputs) for at in shapes if value in at}
    if given:
        return tuple(sorted(given))
    rank = 4 if candidate.op == "Conv" else 2
    shape: list[int | str | None] = list(graph.shapes.get(value, (None,) * rank))
    if candidate.axis <= len(shape):
        shape.pop(-candidate.axis)
    if candidate.op == "Conv":
        batch, *sides = shape
        pixels = [side if isinstance(side, int) else _SIDE for side in sides]
        return (max(1, math.prod([batch if isinstance(batch, int) else 1, *pixels])),)
    known = math.prod(dim for dim in shape if isinstance(dim, int))
    if all(isinstance(dim, int) for dim in shape):
        return (max(1, known),)
    rows = _SEQUENCE_ROWS if len(shape) > 1 else _ROWS
    return tuple(known * count for count in rows)
