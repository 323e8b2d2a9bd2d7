"""What a lowering did, node by node."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """One weight-bearing node and what became of it.

    Attributes:
        node: Name of the node in the source file.
        op: Its operator.
        shape: Dense shape of its weight ([out, in] or [out, in, kh, kw] where it was understood).
        density: Kept share of the weight.
        layout: Packed layout, None where the node stayed as it was.
        decision: "sparse" or "dense".
        reason: Why, in a sentence.
    """

    node: str
    op: str
    shape: tuple[int, ...]
    density: float
    layout: str | None
    decision: str
    reason: str


@dataclass(frozen=True)
class NodeCounts:
    """Number of weight-bearing nodes by what became of them."""

    sparse: int
    dense: int


@dataclass(frozen=True)
class LowerReport:
    """Result of an export or a lowering.

    Attributes:
        nodes: Weight-bearing nodes, sparse and dense.
        max_abs_error: Largest absolute difference of any output from the source's.
        bytes: Size of the written model, external data included.
        layers: One entry a weight-bearing node, in the file's order.
    """

    nodes: NodeCounts
    max_abs_error: float
    bytes: int
    layers: tuple[LayerReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries and lists."""
        return asdict(self) | {
            "layers": [asdict(layer) | {"shape": list(layer.shape)} for layer in self.layers]
        }
