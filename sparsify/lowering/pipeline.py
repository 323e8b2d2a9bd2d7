"""The lowering from file to file: read, match, decide, fuse, rewrite, check, rename."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsify.errors import UserError
from sparsify.lowering.attention_fusion import find_fusions
from sparsify.lowering.candidate import Array, Candidate
from sparsify.lowering.chain_choice import choose_chains
from sparsify.lowering.chains import find_regions, joined_names, with_joined
from sparsify.lowering.cost import Decision
from sparsify.lowering.decisions import Match, Request, choose, decide_all, silent
from sparsify.lowering.feed_forward import find_pairs
from sparsify.lowering.graph import Graph
from sparsify.lowering.integrity import check_written
from sparsify.lowering.matching import match_all
from sparsify.lowering.model_file import data_files, read_model, staged, stored_bytes
from sparsify.lowering.parity import compare
from sparsify.lowering.report import LayerReport, LowerReport, NodeCounts
from sparsify.lowering.rewrite import HALF_ULP, Packer, padded_pools, rewrite
from sparsify.lowering.tune import Progress
from sparsify.lowering.workload import reference_run
from sparsify.runtime import Session


def lower(
    src: str | Path,
    dst: str | Path,
    *,
    tune: bool = False,
    layout: str | None = None,
    inputs: Mapping[str, Array] | None = None,
    threads: int | None = None,
    batches: Sequence[int] = (),
    sizes: Mapping[str, int] | None = None,
    cache: bool = True,
    weight_dtype: str = "float32",
    external_data: bool = False,
    target: str = "cpu",
    chains: bool | None = None,
    progress: Progress = silent,
) -> LowerReport:
    """Replaces nodes with zeros in their weights by sparse operators where that is faster.

    Args:
        src: Any ONNX file.
        dst: File to write; may be `src`. It appears whole or not at all.
        tune: Decide by measuring on this machine, ending with the whole file against its dense self.
        layout: A layout of `runtime.layouts.LAYOUTS` makes every node sparse that can be, "dense" none; None
            decides node by node.
        inputs: Example inputs for the check at the end, and to tune on; drawn at random when not given.
        threads: Threads within an operator to decide for; one when not given.
        batches: Batch sizes to decide for. When not given: what the file says, or with `tune` 1 and 8.
        sizes: Sizes of other free dimensions by symbol; 128 with `tune` where not given.
        cache: Whether `tune` keeps its times on disk (`$SPARSIFY_CACHE`) and looks them up there.
        weight_dtype: What sparse weights are stored in: "float32", or in half the bytes and
            rounded "bfloat16" or "float16". Sums are float32 always.
        external_data: Write constants to a file beside the model, `<name>-<hash>.data`. It is mapped when a
            session opens, and packed weights take no memory once kernels have derived their own form of
            them. Constants of 2 GB and more go there in any case.
        target: "cpu", or "cuda" for ONNX Runtime's CUDA provider: decided by `gpu_cost`, unmeasured, or with
            `tune` on this machine's GPU.
        chains: Whether sparse convolutions that feed each other become one node, which runs image by image;
            None where that pays: with maps kept as rows, or two images for each thread.
        progress: Called by `tune` with what is being done, how many of it are done, and how many there are.

    Returns:
        What became of every weight-bearing node, and the largest difference between the two files' outputs.

    Raises:
        UserError: A file that is missing, damaged or not ONNX; weights that are not finite; a bad option.
        ParityError: The two files' outputs differ by more than rounding explains.
    """
    source, written = Path(src), Path(dst)
    sizes = sizes or {}
    request = Request(tune, layout, inputs, threads, tuple(batches), sizes, cache, progress, target, chains)
    if weight_dtype not in HALF_ULP:
        raise UserError(f"weights are stored as {', '.join(HALF_ULP)}, not {weight_dtype!r}")
    graph = Graph(read_model(source))
    matches = match_all(graph)
    packer = Packer(weight_dtype)
    decisions = decide_all(graph, source, matches, packer, request)
    choice = choose_chains(graph, source, matches, decisions, packer, request)
    chosen = choose(graph, matches, choice.decisions)
    model = rewrite(graph, chosen, packer, target=target) if chosen else graph.model
    regions = find_regions(model) if choice.chained and chosen else []
    regions += find_pairs(model) if chosen and target == "cpu" else []
    names = joined_names(model, regions)
    model = with_joined(model, regions) if regions else model
    with staged(model, written, external_data=external_data) as beside:
        epsilon = max(graph.epsilon, 2 * HALF_ULP[weight_dtype])
        error = _check(graph, source, beside, inputs, epsilon) if chosen else 0.0
    notes = {pool.nodes[0]: pool.note for pool in padded_pools(graph, chosen, target=target)}
    layers = layer_reports(matches, choice.decisions, names, notes)
    data = data_files(written)
    attention = find_fusions(graph, chosen, target=target).reports
    return LowerReport(count_nodes(layers), error, stored_bytes(written, data), layers, data, attention)


def _check(
    graph: Graph, source: Path, lowered: Path, inputs: Mapping[str, Array] | None, epsilon: float
) -> float:
    feeds, expected = reference_run(graph, source, inputs)
    check_written(lowered, source)
    actual = Session(lowered).run(feeds)
    return compare(expected, actual, what="lowered model against its source", epsilon=epsilon)


def layer_reports(
    matches: Sequence[Match],
    decisions: Mapping[int, Decision],
    chains: Mapping[str, str] | None = None,
    notes: Mapping[int, str] | None = None,
) -> tuple[LayerReport, ...]:
    """What became of every weight-bearing node, in the file's order.

    Args:
        matches: All matches.
        decisions: Decision by the candidate's index.
        chains: Name of the chain by the names of the nodes in it.
        notes: What else happens to a node, by the candidate's index; it follows the reason.
    """
    layers = []
    for match in matches:
        if isinstance(match, Candidate):
            decision = decisions[match.index]
            note = (notes or {}).get(match.index)
            layout, reason = decision.layout, decision.reason + (f"; {note}" if note else "")
            chain = (chains or {}).get(match.node)
        else:
            layout, reason, chain = match.layout, match.reason, match.chain
        kind = "dense" if layout is None else "sparse"
        shape = tuple(match.shape)
        layers.append(
            LayerReport(match.node, match.op, shape, match.density, layout, kind, reason, chain=chain)
        )
    return tuple(layers)


def count_nodes(layers: Sequence[LayerReport]) -> NodeCounts:
    """Sparse and dense nodes of a report."""
    sparse = sum(layer.decision == "sparse" for layer in layers)
    return NodeCounts(sparse, len(layers) - sparse)
