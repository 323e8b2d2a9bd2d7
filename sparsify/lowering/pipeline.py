"""The lowering from file to file: read, match, decide, fuse, rewrite, check, rename."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from sparsify.errors import UserError
from sparsify.lowering.candidate import Array, Candidate, LeftAlone
from sparsify.lowering.cost import Decision, decide
from sparsify.lowering.epilogue import fuse
from sparsify.lowering.graph import Graph
from sparsify.lowering.inputs import SIZES, TUNED_SIZES, random_inputs, shapes_on
from sparsify.lowering.matching import match_all
from sparsify.lowering.model_file import read_model, staged, stored_bytes
from sparsify.lowering.parity import compare
from sparsify.lowering.report import LayerReport, LowerReport, NodeCounts
from sparsify.lowering.rewrite import Packer, rewrite
from sparsify.lowering.tune import measure, take_back
from sparsify.runtime import Session

LAYOUTS = ("csr", "dense")
"""What a caller may force."""

_SILENT = 4  # inputs that do not fit are expected here, and reported if none does


def lower(
    src: str | Path,
    dst: str | Path,
    *,
    tune: bool = False,
    layout: str | None = None,
    inputs: Mapping[str, Array] | None = None,
) -> LowerReport:
    """Replaces nodes with zeros in their weights by sparse operators where that is faster.

    Args:
        src: Any ONNX file.
        dst: File to write; may be `src`. It appears whole or not at all.
        tune: Decide by measuring on this machine, ending with the whole file against its dense self.
        layout: "csr" makes every node sparse that can be, "dense" none; None decides node by node.
        inputs: Example inputs for the check at the end; drawn at random when not given.

    Returns:
        What became of every weight-bearing node, and the largest difference between the two files' outputs.

    Raises:
        UserError: A file that is missing, damaged or not ONNX; weights that are not finite; a bad option.
        ParityError: The two files' outputs differ by more than rounding explains.
    """
    source, target = Path(src), Path(dst)
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    graph = Graph(read_model(source))
    matches = match_all(graph)
    packer = Packer()
    if tune and layout is None:
        decisions = _measured(graph, source, matches, inputs, packer)
    else:
        candidates = [match for match in matches if isinstance(match, Candidate)]
        decisions = {match.index: decide(match, graph, forced=layout) for match in candidates}
    chosen = choose(graph, matches, decisions)
    model = rewrite(graph, chosen, packer) if chosen else graph.model
    with staged(model, target) as beside:
        error = _check(graph, source, beside, inputs) if chosen else 0.0
    return _report(matches, decisions, error, stored_bytes(target))


def _measured(
    graph: Graph,
    source: Path,
    matches: Sequence[Candidate | LeftAlone],
    inputs: Mapping[str, Array] | None,
    packer: Packer,
) -> dict[int, Decision]:
    """Decisions from measurements of every candidate, then of the whole file."""
    feeds, _ = reference_run(graph, source, inputs, sizes=(TUNED_SIZES, *SIZES))
    every = {m.index: Decision("csr", "measured") for m in matches if isinstance(m, Candidate)}
    fused = choose(graph, matches, every)
    measured = measure(graph, [fused[index][0] for index in every], shapes_on(graph, feeds), packer)
    decisions = {
        m.index: measured[m.index].decision if m.index in measured else decide(m, graph)
        for m in matches
        if isinstance(m, Candidate)
    }
    kept, said = take_back(graph, source, choose(graph, matches, decisions), measured, feeds, packer)
    for index, decision in decisions.items():
        if decision.layout is not None and index not in kept:
            decisions[index] = Decision(None, f"taken back, with it the whole was slower ({decision.reason})")
        elif index in kept:
            decisions[index] = Decision(decision.layout, f"{decision.reason}; {said}")
    return decisions


def choose(
    graph: Graph, matches: Sequence[Candidate | LeftAlone], decisions: Mapping[int, Decision]
) -> dict[int, tuple[Candidate, str]]:
    """Fuses what follows into every candidate that becomes sparse.

    Args:
        graph: Index of the source model.
        matches: All matches, in the file's order.
        decisions: Decision by the candidate's index.

    Returns:
        Fused candidate and layout by index; no node is taken in twice.
    """
    chosen: dict[int, tuple[Candidate, str]] = {}
    taken: set[int] = set()
    for match in reversed(matches):  # of two branches that meet in an Add, the later one takes it in
        layout = decisions[match.index].layout if isinstance(match, Candidate) else None
        if isinstance(match, Candidate) and layout is not None:
            fused = fuse(graph, match, taken)
            taken.update(fused.consumed)
            chosen[match.index] = (fused, layout)
    return chosen


def _check(graph: Graph, source: Path, lowered: Path, inputs: Mapping[str, Array] | None) -> float:
    onnx.checker.check_model(str(lowered))
    feeds, expected = reference_run(graph, source, inputs)
    actual = Session(lowered).run(feeds)
    return compare(expected, actual, what="lowered model against its source")


def reference_run(
    graph: Graph,
    source: Path,
    inputs: Mapping[str, Array] | None,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Runs the source on the given inputs, or on random ones of sizes that it accepts.

    Returns:
        The inputs and the outputs.

    Raises:
        UserError: ONNX Runtime cannot open the file, or not run it on any inputs that were tried.
    """
    session = Session(source, log_severity_level=_SILENT)
    if inputs is not None:
        return inputs, session.run(inputs)
    problem: UserError | None = None
    tried: list[list[tuple[int, ...]]] = []
    for batch, other in sizes:
        feeds = random_inputs(graph, batch=batch, other=other)
        shapes = [value.shape for value in feeds.values()]
        if shapes in tried:
            continue
        tried.append(shapes)
        try:
            return feeds, session.run(feeds)
        except UserError as error:
            problem = problem or error
    raise UserError(
        f"{source}: no random inputs that it runs on were found; pass example ones with inputs=… ({problem})"
    )


def _report(
    matches: Sequence[Candidate | LeftAlone], decisions: Mapping[int, Decision], error: float, size: int
) -> LowerReport:
    layers = []
    for match in matches:
        if isinstance(match, Candidate):
            decision = decisions[match.index]
            layout, reason, shape = decision.layout, decision.reason, tuple(match.weight.shape)
        else:
            layout, reason, shape = match.layout, match.reason, match.shape
        kind = "dense" if layout is None else "sparse"
        layers.append(LayerReport(match.node, match.op, shape, match.density, layout, kind, reason))
    sparse = sum(layer.decision == "sparse" for layer in layers)
    return LowerReport(NodeCounts(sparse, len(layers) - sparse), error, size, tuple(layers))
