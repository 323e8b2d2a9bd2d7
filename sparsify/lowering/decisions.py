"""Decides what every candidate becomes: as asked for, by estimate, or by measuring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnxruntime

from sparsify.errors import UserError
from sparsify.lowering.attention_fusion import beside_attention
from sparsify.lowering.candidate import Array, Candidate, LeftAlone
from sparsify.lowering.cost import BESIDE_ATTENTION, WORTHWHILE, Decision, Machine, decide
from sparsify.lowering.epilogue import fuse
from sparsify.lowering.gpu_cost import decide_gpu
from sparsify.lowering.graph import Graph
from sparsify.lowering.inputs import random_inputs, shapes_on
from sparsify.lowering.neighbours import beside_dense
from sparsify.lowering.rewrite import Packer
from sparsify.lowering.tune import Progress, measure, take_back
from sparsify.lowering.tuning_cache import TuningCache, cache_folder, environment_of
from sparsify.lowering.workload import TUNED_SIZES, check_batch, check_symbols, workloads
from sparsify.runtime import layouts
from sparsify.runtime.cuda import PROVIDER

Match = Candidate | LeftAlone
Chosen = dict[int, tuple[Candidate, str]]

LAYOUTS = (*layouts.LAYOUTS, "dense")
"""What a caller may force."""


TARGETS = ("cpu", "cuda")
"""Where the lowered file is to run: ONNX Runtime's CPU provider, or its CUDA provider."""


def silent(what: str, done: int, total: int) -> None:
    """Says nothing about progress."""


@dataclass(frozen=True)
class Request:
    """How to decide, and for what.

    Attributes:
        tune: Measure on this machine instead of estimating.
        layout: A layout to take for every node, "dense" for none; None decides node by node.
        inputs: The only inputs to measure on; random ones where they are not given.
        threads: Threads within an operator; None for one.
        batches: Batch sizes to decide for; empty for what the file says.
        sizes: Sizes of other free dimensions by symbol.
        cache: Whether measured times are kept on disk and looked up there.
        progress: Told how far measuring has come.
        target: One of `TARGETS`.
        chains: Whether convolutions that feed each other become one node; None where that pays.
    """

    tune: bool = False
    layout: str | None = None
    inputs: Mapping[str, Array] | None = None
    threads: int | None = None
    batches: tuple[int, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    cache: bool = True
    progress: Progress = silent
    target: str = "cpu"
    chains: bool | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UserError(f"unknown target {self.target!r}; choose one of {', '.join(TARGETS)}")
        if self.chains and self.target == "cuda":
            raise UserError("chains run on CPUs only: leave them out, or lower for cpu")
        if self.tune and self.target == "cuda" and PROVIDER not in onnxruntime.get_available_providers():
            raise UserError(
                f"tuning for cuda measures on the GPU, and this ONNX Runtime has no {PROVIDER}: install "
                "onnxruntime-gpu, or leave tune out and take the estimate"
            )
        if self.layout is not None and self.layout not in LAYOUTS:
            raise UserError(f"unknown layout {self.layout!r}; choose one of {', '.join(LAYOUTS)}")
        if self.threads is not None and self.threads < 1:
            raise UserError(f"threads must be at least 1, not {self.threads}")
        if self.tune and self.layout is not None:
            raise UserError(
                f"a layout that is asked for ({self.layout}) leaves nothing to tune; give tune or layout"
            )


def decide_all(
    graph: Graph, source: Path, matches: Sequence[Match], packer: Packer, request: Request
) -> dict[int, Decision]:
    """What every candidate becomes, by its index.

    Args:
        graph: Index of the source model.
        source: The source file.
        matches: All matches, in the file's order.
        packer: Keeps packed weights.
        request: How to decide.

    Raises:
        UserError: The file does not run at a size that was asked for.
        RuntimeLibraryError: The native library is missing.
    """
    candidates = [match for match in matches if isinstance(match, Candidate)]
    if not candidates or request.layout is not None:
        forced = request.layout or "dense"
        return {match.index: decide(match, graph, Machine(), forced=forced) for match in candidates}
    if request.tune:
        return _measured(graph, source, matches, packer, request)
    machine = Machine.here(request.threads, request.target)
    return estimate_all(graph, candidates, shapes_asked(graph, request), machine)


def estimate_all(
    graph: Graph,
    candidates: Sequence[Candidate],
    shapes: Sequence[Mapping[str, tuple[int, ...]]],
    machine: Machine,
) -> dict[int, Decision]:
    """Decisions by estimate, of which some make others cheaper or dearer.

    Each convolution that stays dense costs its sparse neighbours a conversion; projections around an
    attention that can become one operator need not gain by themselves.

    Args:
        graph: Index of the source model.
        candidates: What to decide.
        shapes: Shapes of the graph's values at the sizes to decide for; empty for what the file says.
        machine: What to decide for.
    """
    if machine.target == "cuda":
        return {match.index: decide_gpu(match, graph, shapes) for match in candidates}
    projections = beside_attention(graph, candidates)
    decisions = {}
    for match in candidates:
        worthwhile = BESIDE_ATTENTION if match.index in projections else WORTHWHILE
        decisions[match.index] = decide(match, graph, machine, shapes=shapes, worthwhile=worthwhile)
    known: dict[int, tuple[bool, bool]] = {}
    while True:
        sparse = {index for index, decision in decisions.items() if decision.layout is not None}
        found = {
            match.index: beside_dense(graph, match.x, match.output, sparse)
            for match in candidates
            if match.op == "Conv" and match.index in sparse
        }
        changed = {index for index, sides in found.items() if sides != known.get(index, (False, False))}
        if not changed:
            return decisions
        known |= found
        for match in candidates:
            if match.index in changed:
                decisions[match.index] = decide(
                    match, graph, machine, shapes=shapes, converted=known[match.index]
                )


def shapes_asked(graph: Graph, request: Request) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of the graph's values at the sizes that are asked for; empty where none are."""
    check_symbols(graph, request.sizes)
    if not request.batches and not request.sizes:
        return []
    found = []
    for batch in request.batches or (1,):
        check_batch(graph, batch, fixed_is_fine=not request.batches)
        feeds = random_inputs(graph, batch=batch, other=TUNED_SIZES[0], symbols=request.sizes)
        found.append(shapes_on(graph, feeds))
    return found


def _measured(
    graph: Graph,
    source: Path,
    matches: Sequence[Match],
    packer: Packer,
    request: Request,
) -> dict[int, Decision]:
    """Decisions from measurements of every candidate, then of the whole file."""
    machine = Machine.here(request.threads, request.target)
    feeds = workloads(graph, source, request.inputs, batches=request.batches, symbols=request.sizes)
    shapes = [shapes_on(graph, inputs) for inputs in feeds]
    every = {match.index: Decision("csr", "to measure") for match in matches if isinstance(match, Candidate)}
    fused = choose(graph, matches, every)
    cache = TuningCache(environment_of(machine), cache_folder() if request.cache else None)
    measured = measure(
        graph,
        [fused[index][0] for index in every],
        shapes,
        packer,
        machine=machine,
        cache=cache,
        progress=request.progress,
    )
    candidates = [match for match in matches if isinstance(match, Candidate)]
    decisions = estimate_all(graph, [m for m in candidates if m.index not in measured], shapes, machine)
    decisions |= {index: times.decision for index, times in measured.items()}
    chosen = choose(graph, matches, decisions)
    kept, said = take_back(
        graph, source, chosen, measured, feeds, packer, machine=machine, progress=request.progress
    )
    return {index: _final(decision, index in kept, said) for index, decision in decisions.items()}


def _final(decision: Decision, kept: bool, said: str) -> Decision:
    if kept:
        return Decision(decision.layout, f"{decision.reason}; {said}")
    if decision.layout is not None:
        return Decision(None, f"taken back: the whole file is faster without it ({decision.reason})")
    return decision


def choose(graph: Graph, matches: Sequence[Match], decisions: Mapping[int, Decision]) -> Chosen:
    """Fuses what follows into every candidate that becomes sparse.

    Args:
        graph: Index of the source model.
        matches: All matches, in the file's order.
        decisions: Decision by the candidate's index.

    Returns:
        Fused candidate and layout by index; no node is taken in twice.
    """
    chosen: Chosen = {}
    taken: set[int] = set()
    for match in reversed(matches):  # of two branches that meet in an Add, the later one takes it in
        layout = decisions[match.index].layout if isinstance(match, Candidate) else None
        if isinstance(match, Candidate) and layout is not None:
            fused = fuse(graph, match, taken)
            taken.update(fused.consumed)
            chosen[match.index] = (fused, layout)
    return chosen
