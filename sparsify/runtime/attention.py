"""The attention operator: whether the native library has it, and what it is in standard operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sparsify.errors import UnsupportedModelError
from sparsify.runtime.library import load

__all__ = ["ATTENTION", "has_attention", "standard_attention"]

ATTENTION = "Attention"
"""Name of the operator in `ai.sparsify`."""


def has_attention() -> bool:
    """Whether the native library has `ai.sparsify::Attention`: `SPARSIFY_LIBRARY` may name an older build.

    Raises:
        RuntimeLibraryError: There is no library.
    """
    return hasattr(load(), "sparsify_attention_run")


def standard_attention(node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and constants that compute what an Attention node computes.

    Args:
        node: A node of `ai.sparsify::Attention`.

    Raises:
        UnsupportedModelError: It has fewer heads of keys than of queries.
    """
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if options["num_heads"] != options["kv_num_heads"]:
        raise UnsupportedModelError(
            f"node {node.name!r}: shared heads of keys are not written in standard operators"
        )
    build = _Nodes(f"{node.output[0]}/dense")
    heads = options["num_heads"]
    q, k, v = (_per_head(build, name, heads) for name in node.input[:3])
    keys = build.add("Transpose", k, perm=[0, 1, 3, 2])
    scores = build.add("MatMul", q, keys)
    scores = build.add("Mul", scores, build.constant(np.float32(options["scale"])))
    if len(node.input) > 3 and node.input[3]:
        scores = build.add("Add", scores, node.input[3])
    if options["causal"]:
        scores = build.add("Where", _up_to(build, scores), scores, build.constant(np.float32(-np.inf)))
    weights = build.add("Softmax", scores, axis=3)
    if options["nan_guard"]:
        weights = build.add("Where", build.add("IsNaN", weights), build.constant(np.float32(0.0)), weights)
    joined = build.add("Transpose", build.add("MatMul", weights, v), perm=[0, 2, 1, 3])
    shape = build.constant(np.array([0, 0, -1], np.int64))
    build.add("Reshape", joined, shape, result=node.output[0])
    return build.nodes, build.tensors


class _Nodes:
    """Nodes and constants with names of their own."""

    def __init__(self, stem: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._stem = stem

    def add(self, op: str, *inputs: str, result: str = "", **attributes: Any) -> str:
        name = f"{self._stem}.{len(self.nodes)}.{op}"
        self.nodes.append(helper.make_node(op, list(inputs), [result or name], name=name, **attributes))
        return result or name

    def constant(self, value: np.ndarray | np.generic) -> str:
        name = f"{self._stem}.{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def _per_head(build: _Nodes, name: str, heads: int) -> str:
    shape = build.constant(np.array([0, 0, heads, -1], np.int64))
    return build.add("Transpose", build.add("Reshape", name, shape), perm=[0, 2, 1, 3])


def _up_to(build: _Nodes, scores: str) -> str:
    """[queries, keys]: whether a key is not later than a query."""
    sizes = build.add("Shape", scores)
    zero, one = (build.constant(np.int64(number)) for number in (0, 1))
    last = [
        build.add("Range", zero, build.add("Gather", sizes, build.constant(np.int64(axis)), axis=0), one)
        for axis in (2, 3)
    ]
    rows = build.add("Reshape", last[0], build.constant(np.array([-1, 1], np.int64)))
    later = build.add("Less", rows, last[1])
    return build.add("Not", later)
