"""Decides by measuring: each node against its dense self, then the whole file against its source.

ONNX Runtime treats a dense neighbourhood better than the sum of its nodes (fusions, the NCHWc layout of
convolutions), so nodes that win alone may lose together. The last word is therefore the whole model's: while
it is slower than its source at any size, the nodes that gained least are taken back, and on from there for
as long as that makes it faster still.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from sparsify.lowering.candidate import Array, Candidate
from sparsify.lowering.cost import Decision, Machine, storage
from sparsify.lowering.graph import Graph
from sparsify.lowering.model_file import staged
from sparsify.lowering.node_timing import NodeTimes, time_node
from sparsify.lowering.rewrite import Packer, rewrite
from sparsify.lowering.tuning_cache import TuningCache, describe
from sparsify.runtime import Session
from sparsify.runtime.bench_provider import PROVIDERS, call_of
from sparsify.runtime.timing import interleave

FILE_SECONDS = 1.5
"""Time for each side of the whole file's comparison, at each size."""

WORTHWHILE = 0.97
"""Share of dense time that a sparse node may take, in the mean over sizes."""

NOT_SLOWER = 1.0
"""Share of dense time that a node or a file may take at any one size."""

Chosen = Mapping[int, tuple[Candidate, str]]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many of it are done, and how many there are."""


@dataclass(frozen=True)
class Measured:
    """Times of one node at every size.

    Attributes:
        times: One entry a size.
    """

    times: tuple[NodeTimes, ...]

    def share(self, layout: str) -> float:
        """Sparse time over dense time, in the geometric mean over sizes."""
        return _mean(at.sparse[layout] / at.dense for at in self.times)

    @property
    def best(self) -> str:
        """The fastest layout."""
        return min(self.times[0].sparse, key=self.share)

    def gain(self, layout: str) -> float:
        """Seconds that the sparse node saves, over all sizes together."""
        return sum(at.dense - at.sparse[layout] for at in self.times)

    @property
    def decision(self) -> Decision:
        """The fastest layout where it is worthwhile, with the times as the reason."""
        fast = [
            layout
            for layout in self.times[0].sparse
            if all(at.sparse[layout] <= NOT_SLOWER * at.dense for at in self.times)
            and self.share(layout) < WORTHWHILE
        ]
        layout = min(fast, key=self.share) if fast else None
        return Decision(layout, "measured: " + "; ".join(self._said(at) for at in self.times))

    @staticmethod
    def _said(at: NodeTimes) -> str:
        sparse = ", ".join(f"{layout} {1e6 * seconds:.0f} µs" for layout, seconds in at.sparse.items())
        return f"{sparse}, dense {1e6 * at.dense:.0f} µs on {list(at.shape)}"


def measure(
    graph: Graph,
    candidates: Sequence[Candidate],
    sizes: Sequence[Mapping[str, tuple[int, ...]]],
    packer: Packer,
    *,
    machine: Machine,
    cache: TuningCache,
    progress: Progress,
) -> dict[int, Measured]:
    """Times candidates in every applicable layout; those that the cache knows, or of one kind, not again.

    Args:
        graph: Index of the source model.
        candidates: Fused candidates.
        sizes: Shapes of the graph's values, for every size to measure at; candidates whose input is not in
            them are left out.
        packer: Keeps packed weights.
        machine: Threads to measure with, and where.
        cache: What was measured before.
        progress: Told of every candidate.
    """
    measured: dict[int, Measured] = {}
    for done, candidate in enumerate(candidates):
        progress("measuring nodes", done, len(candidates))
        counts = storage(candidate)
        times = []
        for shapes in sizes:
            at = _times(graph, candidate, counts, shapes, packer, machine, cache)
            if at is not None:
                times.append(at)
        if times:
            measured[candidate.index] = Measured(tuple(times))
    progress("measuring nodes", len(candidates), len(candidates))
    return measured


def _times(
    graph: Graph,
    candidate: Candidate,
    counts: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    packer: Packer,
    machine: Machine,
    cache: TuningCache,
) -> NodeTimes | None:
    if candidate.x not in shapes:
        return None
    about = describe(graph, candidate, counts, shapes) | {"weights": packer.dtype}
    about |= {"dtype": packer.dtype}
    known = cache.get(about, {"dense", *counts})
    if known is not None:
        return NodeTimes(shapes[candidate.x], known["dense"], {layout: known[layout] for layout in counts})
    times = time_node(graph, candidate, list(counts), shapes, packer, machine=machine)
    if times is not None:
        cache.put(about, {"dense": times.dense, **times.sparse})
    return times


def take_back(
    graph: Graph,
    source: Path,
    chosen: Chosen,
    measured: Mapping[int, Measured],
    feeds: Sequence[Mapping[str, Array]],
    packer: Packer,
    *,
    machine: Machine,
    progress: Progress,
) -> tuple[dict[int, tuple[Candidate, str]], str]:
    """Takes nodes back until the whole file is not slower than its source at any size.

    Once it is not, nodes are taken back for as long as that makes the file faster still.

    Args:
        graph: Index of the source model.
        source: The source file.
        chosen: Fused candidates and layouts by index.
        measured: Times by index.
        feeds: Inputs to time the whole on, for every size.
        packer: Keeps packed weights.
        machine: Threads to measure with, and where.
        progress: Told of every comparison.

    Returns:
        The nodes that stay sparse, and what the deciding comparison said.
    """
    order = sorted(
        chosen, key=lambda index: measured[index].gain(chosen[index][1]) if index in measured else 0.0
    )
    best: dict[int, tuple[Candidate, str]] = {}
    said, rounds = "nothing was faster sparse", 0
    while order:
        progress("measuring the whole file", rounds, rounds + 1)
        kept = {index: chosen[index] for index in order}
        times = compare_files(graph, source, [best, kept] if best else [kept], feeds, packer, machine=machine)
        fast = all(at[-1] <= NOT_SLOWER * at[0] for at in times)
        if best and not (fast and _mean(at[-1] / at[1] for at in times) < WORTHWHILE):
            break
        if fast:
            best = kept
            said = "whole file: " + "; ".join(
                f"{1e3 * at[-1]:.2f} ms, source {1e3 * at[0]:.2f} ms" for at in times
            )
        order = order[math.ceil(len(order) / 4) :]
        rounds += 1
    return best, said


def compare_files(
    graph: Graph,
    source: Path,
    variants: Sequence[Chosen],
    feeds: Sequence[Mapping[str, Array]],
    packer: Packer,
    *,
    machine: Machine,
) -> list[list[float]]:
    """Times the source and files with some nodes sparse, in alternating blocks.

    Args:
        graph: Index of the source model.
        source: The source file.
        variants: For each file to compare, its fused candidates and layouts by index.
        feeds: Inputs, for every size.
        packer: Keeps packed weights.
        machine: Threads to measure with, and where.

    Returns:
        For every size the median seconds of the source and of each variant.
    """
    models = [rewrite(graph, chosen, packer, target=machine.target) for chosen in variants]
    return compare_models(source, models, feeds, machine=machine)


def compare_models(
    source: Path,
    models: Sequence[onnx.ModelProto],
    feeds: Sequence[Mapping[str, Array]],
    *,
    machine: Machine,
) -> list[list[float]]:
    """Times a file and models that were made from it, in alternating blocks.

    Args:
        source: The source file.
        models: What to compare with it.
        feeds: Inputs, for every size.
        machine: Threads to measure with, and where.

    Returns:
        For every size the median seconds of the source and of each model.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [source]
        for number, model in enumerate(models):
            files.append(Path(folder) / f"attempt-{number}.onnx")
            with staged(model, files[-1]):
                pass
        providers = PROVIDERS[machine.target]
        sessions = [Session(file, threads=machine.threads, providers=providers) for file in files]
        times = []
        for inputs in feeds:
            calls = [call_of(session, dict(inputs), machine.target) for session in sessions]
            times.append([timing.median for timing in interleave(calls, seconds=FILE_SECONDS)])
    return times


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
