"""Decides which attentions become one operator, and makes its node.

That is faster than the nodes it stands for, sparse weights or not; but a file that needs our operators for
nothing else stays free of them, so one of the projections around it must have become sparse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import helper

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.graph import STANDARD, Graph
from sparsify.lowering.match_attention import Attention, match_attentions
from sparsify.lowering.report import AttentionReport
from sparsify.runtime.attention import ATTENTION, has_attention
from sparsify.runtime.session import DOMAIN

_BETWEEN = ("Split", "Slice", "Identity")
_FAR = 4


@dataclass(frozen=True)
class Fusions:
    """What becomes of every attention of a file.

    Attributes:
        fused: Those that become one node.
        reports: One entry each, in the file's order.
    """

    fused: tuple[Attention, ...]
    reports: tuple[AttentionReport, ...]


def find_fusions(
    graph: Graph, chosen: Mapping[int, tuple[Candidate, str]], *, target: str = "cpu"
) -> Fusions:
    """Decides for every attention.

    Args:
        graph: Index of the source model.
        chosen: What becomes sparse: fused candidates and layouts by index.
        target: Where the lowered file is to run, "cpu" or "cuda".

    Raises:
        RuntimeLibraryError: There is no native library.
    """
    candidates = [candidate for candidate, _ in chosen.values()]
    makes = {candidate.output for candidate in candidates}
    reads = {candidate.x for candidate in candidates}
    consumed = {index for candidate in candidates for index in candidate.consumed}
    fused, reports = [], []
    for match in match_attentions(graph):
        if not isinstance(match, Attention):
            reports.append(AttentionReport(match.node, None, False, match.reason))
            continue
        reason = _against(graph, match, makes, reads, consumed, target)
        if reason is None:
            fused.append(match)
        reports.append(AttentionReport(match.node, match.heads, reason is None, reason or _said(match)))
    return Fusions(tuple(fused), tuple(reports))


def _against(
    graph: Graph,
    match: Attention,
    makes: Collection[str],
    reads: Collection[str],
    consumed: Collection[int],
    target: str,
) -> str | None:
    projected = (_source(graph, name, makes) for name in (match.q, match.k, match.v))
    if match.output not in reads and not any(projected):
        return "none of the projections around it became sparse"
    if target != "cpu":
        return f"there is no such operator for {target}"
    if match.place in consumed:
        return "a sparse operator takes in its last node"
    if not has_attention():
        return "the native library is an older one without the operator"
    return None


def beside_attention(graph: Graph, candidates: Sequence[Candidate]) -> frozenset[int]:
    """Indices of the projections around attentions that become one operator if one of these becomes sparse.

    Args:
        graph: Index of the source model.
        candidates: What may become sparse on a CPU.

    Raises:
        RuntimeLibraryError: There is no native library.
    """
    made = {candidate.output: candidate.index for candidate in candidates}
    found: set[int] = set()
    for match in match_attentions(graph):
        if isinstance(match, Attention) and has_attention():
            sources = (_source(graph, name, made) for name in (match.q, match.k, match.v))
            found |= {made[name] for name in sources if name is not None}
            found |= {candidate.index for candidate in candidates if candidate.x == match.output}
    return frozenset(found)


def _source(graph: Graph, name: str, makes: Collection[str]) -> str | None:
    """The one of `makes` that a value is, or is a part of."""
    for _ in range(_FAR):
        if name in makes:
            return name
        node = graph.nodes[graph.producer[name]] if name in graph.producer else None
        if node is None or node.domain not in STANDARD or node.op_type not in _BETWEEN:
            return None
        name = node.input[0]
    return None


def _said(match: Attention) -> str:
    mask = "causal" if match.causal else "its mask stays an input" if match.bias is not None else "no mask"
    return f"one node instead of scores, softmax and product; {mask}"


def attention_node(match: Attention) -> onnx.NodeProto:
    """The node that stands for a matched attention."""
    inputs = [match.q, match.k, match.v, *([] if match.bias is None else [match.bias])]
    return helper.make_node(
        ATTENTION,
        inputs,
        [match.output],
        name=match.node,
        domain=DOMAIN,
        num_heads=match.heads,
        kv_num_heads=match.heads,
        scale=match.scale,
        causal=int(match.causal),
        nan_guard=int(match.nan_guard),
    )
