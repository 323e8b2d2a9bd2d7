"""Where the time of a model goes, node by node, beside its dense baseline and the machine's ceilings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsify.runtime import conv_chain, feed_forward, joined, layouts
from sparsify.runtime.roofline import Roofline
from sparsify.runtime.zero_filled import sparse_nodes

_LINEAR = ("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "SparseLinear", feed_forward.OPERATOR)
_CONV = ("Conv", "FusedConv", "SparseConv", conv_chain.OPERATOR)


@dataclass(frozen=True)
class SparseWeight:
    """The weight of a sparse node.

    Attributes:
        shape: Dense shape, [out, in] or [out, in, kh, kw].
        layout: Packed layout.
        nonzeros: Weights that are not zero.
        nbytes: Bytes of its packed tensors.
    """

    shape: tuple[int, ...]
    layout: str
    nonzeros: int
    nbytes: int


class Step(NamedTuple):
    """One of the nodes that a node stands for, on an input of some shape.

    Attributes:
        weight: Its weight.
        x: Shape of its input.
        y: Shape of its output.
        columns: Rows of activations, or output pixels.
    """

    weight: SparseWeight
    x: tuple[int, ...]
    y: tuple[int, ...]
    columns: int


@dataclass(frozen=True)
class ChainWeights:
    """The weights of sparse nodes that one node stands for.

    Attributes:
        maps: Names of what it reads, without weights.
        steps: The nodes that it stands for, each with its weight.
    """

    maps: tuple[str, ...]
    steps: tuple[tuple[onnx.NodeProto, SparseWeight], ...]

    def walk(self, inputs: Sequence[Sequence[int]]) -> list[Step]:
        """Its steps on outer maps of these shapes."""
        shapes = {name: tuple(shape) for name, shape in zip(self.maps, inputs, strict=False)}
        found = []
        for node, weight in self.steps:
            x = shapes[node.input[0]]
            shapes[node.output[0]], columns = joined.output_shape(node, x)
            found.append(Step(weight, x, shapes[node.output[0]], columns))
        return found

    def products(self, inputs: Sequence[Sequence[int]]) -> tuple[Product, ...]:
        """What its steps multiply, on outer maps of these shapes."""
        return tuple(
            Product(weight.shape, columns, 2.0 * weight.nonzeros * columns, weight.nbytes, weight.layout)
            for weight, _, _, columns in self.walk(inputs)
        )


@dataclass(frozen=True)
class Product:
    """A node that multiplies by a matrix, or by several one after another.

    Attributes:
        weight: Dense shape of the matrix, outputs first; empty where there are several.
        columns: Rows of activations, or output pixels.
        flops: Floating-point operations of the non-zeros that the node has.
        nbytes: Bytes of weights, inputs and outputs.
        decision: Layout, or "dense"; None where the matrix is no weight.
        parts: The products that a joined node stands for.
    """

    weight: tuple[int, ...]
    columns: int
    flops: float
    nbytes: float
    decision: str | None
    parts: tuple[Product, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the same product, sparse or dense."""
        return self.weight, self.columns


Weights = Mapping[str, SparseWeight | ChainWeights]


def sparse_weights(model: onnx.ModelProto) -> dict[str, SparseWeight | ChainWeights]:
    """The weights of a model's sparse nodes, by the node's name.

    Args:
        model: The model with its external data loaded.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, SparseWeight | ChainWeights] = {}
    for node in sparse_nodes(model):
        if joined.is_joined(node):
            steps = joined.separate(node)
            weights = tuple((step, _sparse_weight(step, constants)) for step in steps)
            found[node.name] = ChainWeights(conv_chain.outer_values(steps), weights)
        else:
            found[node.name] = _sparse_weight(node, constants)
    return found


def _sparse_weight(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> SparseWeight:
    attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if node.op_type == "SparseLinear":
        shape = (attributes["out_features"], attributes["in_features"])
    else:
        shape = (attributes["out_channels"], attributes["in_channels"], *attributes["kernel_shape"])
    tensors = tuple(numpy_helper.to_array(constants[name]) for name in node.input[3:] if name in constants)
    packed = layouts.Packed(
        node.op_type, attributes["layout"].decode(), tuple(map(int, shape)), tensors, attributes
    )
    nonzeros = int(np.count_nonzero(layouts.unpack(packed)))
    return SparseWeight(packed.shape, packed.layout, nonzeros, packed.nbytes)


def product_of(row: Mapping[str, Any], weights: Weights) -> Product | None:
    """What a profiled node multiplies; None for other nodes.

    Args:
        row: A row of `profile_events.node_times`.
        weights: Weights of the model's sparse nodes.
    """
    if not row["inputs"] or not row["outputs"] or row["op"] not in (*_LINEAR, *_CONV):
        return None
    x, y = row["inputs"][0], row["outputs"][0]
    moved = 4.0 * (math.prod(x) + math.prod(y))
    sparse = weights.get(row["node"])
    if isinstance(sparse, ChainWeights):
        return _chain_product(sparse, row["inputs"], moved)
    if sparse is not None:
        columns = math.prod(y) // sparse.shape[0]
        flops = 2.0 * sparse.nonzeros * columns
        return Product(sparse.shape, columns, flops, moved + sparse.nbytes, sparse.layout)
    weight = _dense_weight(row["op"], row["inputs"], y)
    if weight is None:
        return None
    run_time = row["op"] in _LINEAR and len(row["inputs"]) > 1 and len(row["inputs"][1]) > 2
    size = 4.0 * math.prod(row["inputs"][1] if run_time else weight)
    flops = 2.0 * math.prod(y) * math.prod(weight[1:])
    decision = None if run_time else "dense"
    return Product(weight, math.prod(y) // weight[0], flops, moved + size, decision)


def _chain_product(chain: ChainWeights, inputs: Sequence[Sequence[int]], moved: float) -> Product:
    parts = chain.products(inputs)
    flops, nbytes = sum(part.flops for part in parts), sum(part.nbytes for part in parts)
    decision = ", ".join(dict.fromkeys(part.decision for part in parts if part.decision is not None))
    return Product((), 0, flops, moved + nbytes, decision, parts)


def _dense_weight(op: str, inputs: Sequence[Sequence[int]], y: Sequence[int]) -> tuple[int, ...] | None:
    """Shape of a dense node's matrix; ONNX Runtime leaves it out of the inputs where it packed it."""
    if op in _LINEAR:
        return (y[-1], inputs[0][-1]) if y and inputs[0] else None
    return tuple(inputs[1]) if len(inputs) > 1 and len(inputs[1]) == len(y) else None


def annotate(
    rows: Sequence[Mapping[str, Any]],
    weights: Weights,
    roofline: Roofline,
    baseline: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Adds to a profile what each node achieves.

    Args:
        rows: Rows of `profile_events.node_times`.
        weights: Weights of the model's sparse nodes.
        roofline: The machine's ceilings.
        baseline: The annotated rows of the dense baseline.

    Returns:
        The rows with `shape` (of the matrix), `columns`, `gflops` (of the non-zeros that the node has),
        `roofline` (share of what the ceilings allow; above 1 where data stayed in a nearer cache than the
        bandwidth was measured in), `bound` ("compute" or "memory"), `decision` (layout or "dense"), and
        `dense_us` (the baseline's mean over nodes of the same product); None where they mean nothing. A chain
        is one row without `shape` and `columns`; everything else is of all its convolutions together.
    """
    known: dict[object, list[float]] = {}
    for row in baseline:
        if row["shape"] is not None:
            known.setdefault((tuple(row["shape"]), row["columns"]), []).append(row["us"])
    return [_annotated(row, product_of(row, weights), roofline, known) for row in rows]


def _annotated(
    row: Mapping[str, Any],
    product: Product | None,
    roofline: Roofline,
    known: Mapping[object, Sequence[float]],
) -> dict[str, Any]:
    kept = {name: row[name] for name in ("node", "op", "calls", "us", "share")}
    if product is None:
        names = ("shape", "columns", "gflops", "roofline", "bound", "decision", "dense_us")
        return kept | dict.fromkeys(names)
    seconds = max(1e-6 * row["us"], 1e-9)
    dense = [known.get(part.key) for part in product.parts or (product,)]
    means = [sum(found) / len(found) for found in dense if found]
    chain = bool(product.parts)
    return kept | {
        "shape": None if chain else list(product.weight),
        "columns": None if chain else product.columns,
        "gflops": 1e-9 * product.flops / seconds,
        "roofline": roofline.seconds(product.flops, product.nbytes) / seconds,
        "bound": roofline.bound(product.flops, product.nbytes),
        "decision": product.decision,
        "dense_us": sum(means) if len(means) == len(dense) else None,
    }
