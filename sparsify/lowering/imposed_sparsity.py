"""What a dense model would gain in time if its weights were sparse. Accuracy is not looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from sparsify.errors import UserError
from sparsify.lowering.attention_fusion import find_fusions
from sparsify.lowering.candidate import Array, LeftAlone
from sparsify.lowering.cost import Decision, Machine, columns
from sparsify.lowering.decisions import Chosen, Match, Request, choose, decide_all, silent
from sparsify.lowering.gpu_cost import gpu_times
from sparsify.lowering.graph import Graph
from sparsify.lowering.inputs import shapes_on
from sparsify.lowering.magnitude import cut
from sparsify.lowering.matching import match_all
from sparsify.lowering.model_file import data_files, read_model, staged, stored_bytes
from sparsify.lowering.parity import compare
from sparsify.lowering.pipeline import count_nodes, layer_reports
from sparsify.lowering.report import FileTimes, LowerReport, WhatIf
from sparsify.lowering.rewrite import Packer, rewrite
from sparsify.lowering.tune import Progress, compare_files
from sparsify.lowering.workload import workloads
from sparsify.pattern_rules import PatternRule, parse_rule
from sparsify.runtime import Session
from sparsify.runtime.zero_filled import zero_filled

NOTE = "Weights were set to zero by magnitude; accuracy was not looked at, and without training it is lost."
"""Said with every result."""

ESTIMATED = (
    "Estimated by the bytes and FLOPs of an H100, for the layers that can be lowered alone: nothing was "
    "timed, and what else the model does is left out."
)
"""Said with times that were not measured."""


def what_if(
    src: str | Path,
    sparsity: float,
    dst: str | Path | None = None,
    *,
    pattern: str = "unstructured",
    tune: bool = False,
    layout: str | None = None,
    inputs: Mapping[str, Array] | None = None,
    threads: int | None = None,
    batches: Sequence[int] = (),
    sizes: Mapping[str, int] | None = None,
    cache: bool = True,
    target: str = "cpu",
    progress: Progress = silent,
) -> LowerReport:
    """Imposes sparsity on a model's weights, lowers it, and times it beside the dense original.

    The smallest weights of every layer that can be lowered are taken for zero. Layers that are not faster
    sparse keep their weights. This says what is to be gained before anything is trained; it is no way of
    pruning.

    Args:
        src: Any ONNX file.
        sparsity: Share of every weight that becomes zero; fixed by an N:M pattern.
        dst: Where to write the lowered file, whose outputs are not the model's; nowhere when not given.
        pattern: unstructured, fan-in, N:M or RxC (R outputs × C inputs).
        tune: Decide by measuring each node instead of by estimate.
        layout: Force a layout; None decides node by node.
        inputs: Example inputs to time on; drawn at random when not given.
        threads: Threads within an operator; one when not given.
        batches: Batch sizes to time; 1 and 8 when not given.
        sizes: Sizes of other free dimensions by symbol; 128 where not given.
        cache: Whether `tune` keeps its times on disk.
        target: "cpu", or "cuda": without `tune` nothing is timed there, the times are `gpu_cost`'s estimate
            for an H100, of the layers that can be lowered alone.
        progress: Told how far measuring has come.

    Returns:
        The report of a lowering, with `what_if`: the times of both files. Errors are against the model with
        the same weights cut, in standard operators.

    Raises:
        UserError: A file that is missing, damaged or not ONNX; a sparsity or pattern that does not exist.
        ParityError: The sparse operators do not compute what the cut weights say.
    """
    rule = parse_rule(pattern)
    if rule.density is not None:
        sparsity = 1.0 - rule.density
    if not 0.0 < sparsity < 1.0:
        raise UserError(f"sparsity must lie between 0 and 1, not {sparsity}")
    source = Path(src)
    request = Request(tune, layout, inputs, threads, tuple(batches), sizes or {}, cache, progress, target)
    graph = Graph(read_model(source))
    matches = [_imposed(match, rule, 1.0 - sparsity) for match in match_all(graph)]
    packer = Packer()
    decisions = decide_all(graph, source, matches, packer, request)
    chosen = choose(graph, matches, decisions)
    feeds = workloads(graph, source, inputs, batches=request.batches, symbols=request.sizes)
    estimated = target == "cuda" and not tune
    if estimated:
        times = _estimates(graph, matches, chosen, feeds)
    else:
        times = _times(graph, source, chosen, feeds, packer, request)
    written = None if dst is None else Path(dst)
    error, size = _written(graph, chosen, feeds[0], packer, written, target)
    layers = layer_reports(matches, _cut_reasons(decisions, sparsity))
    note = f"{ESTIMATED} {NOTE}" if estimated else NOTE
    found = WhatIf(sparsity, rule.name, threads or 1, times, source.stat().st_size, note, estimated)
    attention = find_fusions(graph, chosen, target=target).reports
    return LowerReport(count_nodes(layers), error, size, layers, attention=attention, what_if=found)


def _imposed(match: Match, rule: PatternRule, density: float) -> Match:
    if isinstance(match, LeftAlone):
        return match
    refusal = rule.refusal(match.weight.shape)
    if refusal is not None:
        reason = f"it cannot have the pattern {rule.name}: {refusal}"
        return LeftAlone(match.node, match.op, tuple(match.shape), match.density, reason)
    return replace(match, weight=cut(match.weight, rule, density))


def _cut_reasons(decisions: Mapping[int, Decision], sparsity: float) -> dict[int, Decision]:
    """Says of every node whether its weights were cut."""
    return {
        index: decision
        if decision.layout is None
        else Decision(decision.layout, f"with {sparsity:.0%} of its weights cut: {decision.reason}")
        for index, decision in decisions.items()
    }


def _times(
    graph: Graph,
    source: Path,
    chosen: Chosen,
    feeds: Sequence[Mapping[str, Array]],
    packer: Packer,
    request: Request,
) -> tuple[FileTimes, ...]:
    if not chosen:
        return ()
    request.progress("timing both files", 0, 1)
    machine = Machine.here(request.threads, request.target)
    times = compare_files(graph, source, [chosen], feeds, packer, machine=machine)
    request.progress("timing both files", 1, 1)
    return tuple(
        FileTimes({name: list(value.shape) for name, value in at.items()}, 1e3 * dense, 1e3 * lowered)
        for at, (dense, lowered) in zip(feeds, times, strict=True)
    )


def _estimates(
    graph: Graph, matches: Sequence[Match], chosen: Chosen, feeds: Sequence[Mapping[str, Array]]
) -> tuple[FileTimes, ...]:
    """Estimated times on the GPU of all layers that can be lowered, dense and as decided."""
    found = []
    for at in feeds if chosen else ():
        shapes = shapes_on(graph, at)
        dense, lowered = 0.0, 0.0
        for match in matches:
            if isinstance(match, LeftAlone):
                continue
            layout = chosen[match.index][1] if match.index in chosen else None
            size = columns(match, graph, [shapes])[0]
            times = gpu_times(match, size, layout=layout or "csr")
            dense += times[0]
            lowered += times[0 if layout is None else 1]
        sizes = {name: list(value.shape) for name, value in at.items()}
        found.append(FileTimes(sizes, dense / 1e6, lowered / 1e6))
    return tuple(found)


def _written(
    graph: Graph,
    chosen: Chosen,
    feeds: Mapping[str, Array],
    packer: Packer,
    written: Path | None,
    target: str,
) -> tuple[float, int]:
    """Largest error and bytes of the lowered file, which stays only where it is to be written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lowered.onnx" if written is None else written
        model = rewrite(graph, chosen, packer, target=target) if chosen else graph.model
        with staged(model, path) as beside:
            error = _check(beside, feeds, Path(folder)) if chosen else 0.0
        return error, stored_bytes(path, data_files(path))


def _check(lowered: Path, feeds: Mapping[str, Array], folder: Path) -> float:
    """The lowered file against the same cut weights in standard operators."""
    twin = folder / "zero-filled.onnx"
    with staged(zero_filled(onnx.load(lowered)), twin):
        pass
    expected = Session(twin).run(feeds)
    return compare(expected, Session(lowered).run(feeds), what="lowered model against its cut weights")
