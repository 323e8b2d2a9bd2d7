"""What a lowering did, node by node."""

from __future__ import annotations

from collections.abc import Mapping
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
        chain: Name of the node that it became a part of, with others; None where it is a node of its own.
    """

    node: str
    op: str
    shape: tuple[int, ...]
    density: float
    layout: str | None
    decision: str
    reason: str
    chain: str | None = None


@dataclass(frozen=True)
class AttentionReport:
    """One attention of the file and what became of it.

    Attributes:
        node: Name of its softmax in the source file; the operator bears it too.
        heads: Number of its heads, None where that was not understood.
        fused: Whether it is one operator now.
        reason: How, or why not, in a sentence.
    """

    node: str
    heads: int | None
    fused: bool
    reason: str


@dataclass(frozen=True)
class NodeCounts:
    """Number of weight-bearing nodes by what became of them."""

    sparse: int
    dense: int


@dataclass(frozen=True)
class FileTimes:
    """Times of a whole model, dense and lowered, in alternating blocks of one process.

    Attributes:
        inputs: Shape of every input.
        dense_ms: Median milliseconds of the file as it was.
        lowered_ms: Median milliseconds of the lowered file.
    """

    inputs: Mapping[str, list[int]]
    dense_ms: float
    lowered_ms: float

    @property
    def speedup(self) -> float:
        """Dense time over lowered time."""
        return self.dense_ms / self.lowered_ms


@dataclass(frozen=True)
class WhatIf:
    """What a dense model would gain from sparsity that was imposed on it.

    Attributes:
        sparsity: Share of the weights that was cut, in the layers that became sparse.
        pattern: What the masks look like.
        threads: Threads within an operator.
        results: Times for each set of inputs; empty where no layer was faster sparse.
        estimated: Whether the times are an estimate, of the layers that can be lowered alone.
        bytes_dense: Size of the dense file.
        note: What this says nothing about.
    """

    sparsity: float
    pattern: str
    threads: int
    results: tuple[FileTimes, ...]
    bytes_dense: int
    note: str
    estimated: bool = False

    @property
    def speedup(self) -> float:
        """The smallest over all inputs; 1.0 where nothing was faster sparse."""
        return min((times.speedup for times in self.results), default=1.0)

    def to_dict(self) -> dict[str, Any]:
        """As plain dictionaries and lists."""
        results = [asdict(times) | {"speedup": times.speedup} for times in self.results]
        return asdict(self) | {"results": results, "speedup": self.speedup}


@dataclass(frozen=True)
class LowerReport:
    """Result of an export or a lowering.

    Attributes:
        nodes: Weight-bearing nodes, sparse and dense.
        max_abs_error: Largest absolute difference of any output from the source's.
        bytes: Size of the written model, external data included.
        layers: One entry a weight-bearing node, in the file's order.
        data_files: Names of the files beside the model that hold its external data; as a rule none.
        attention: One entry an attention, in the file's order.
        what_if: What imposed sparsity would gain, where that was asked.
    """

    nodes: NodeCounts
    max_abs_error: float
    bytes: int
    layers: tuple[LayerReport, ...]
    data_files: tuple[str, ...] = ()
    attention: tuple[AttentionReport, ...] = ()
    what_if: WhatIf | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dictionaries and lists; `what_if` only where it was asked."""
        found = asdict(self) | {
            "layers": [asdict(layer) | {"shape": list(layer.shape)} for layer in self.layers],
            "data_files": list(self.data_files),
            "attention": [asdict(entry) for entry in self.attention],
        }
        del found["what_if"]
        return found if self.what_if is None else found | {"what_if": self.what_if.to_dict()}
