"""Files of every opset from 11 to the newest that ONNX Runtime opens are lowered, with the same results."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from tests.lowering.graphs import attributes, lowered, model, node, operators, sparse_array

OLDEST = 11


@cache
def newest() -> int:
    """The newest opset that both onnx and this ONNX Runtime know."""
    for opset in range(onnx.defs.onnx_opset_version(), OLDEST, -1):
        built = model([node("Neg", ["x"], "y")], {"x": (1,)}, {"y": (1,)}, opset=opset)
        try:
            onnxruntime.InferenceSession(built.SerializeToString())
        except Exception:  # ONNX Runtime's errors have no base class of their own
            continue
        return opset
    return OLDEST


def unsqueeze(source: str, output: str, axis: int, opset: int) -> onnx.NodeProto:
    if opset >= 13:
        return node("Unsqueeze", [source, f"axis{axis}"], output)
    return node("Unsqueeze", [source], output, axes=[axis])


def everything(opset: int) -> onnx.ModelProto:
    """Convolutions in one and two dimensions, Gemm, and products from both sides."""
    norm = {"g": 1.5, "s": 0.25, "m": 0.1, "v": 2.0}
    nodes = [
        node("Conv", ["x", "k", "kb"], "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", *norm], "n"),
        node("Relu", ["n"], "r"),
        node("GlobalAveragePool", ["r"], "p"),
        node("Flatten", ["p"], "f"),
        node("Gemm", ["f", "w1", "b1"], "h", transB=1, alpha=0.5),
        node("Identity", ["w2"], "w2_"),
        node("MatMul", ["h", "w2_"], "m2"),
        node("Add", ["m2", "b2"], "a"),
        unsqueeze("a", "u", 1, opset),
        node("Conv", ["u", "k1"], "d", pads=[1, 1]),
        node("MatMul", ["w3", "d"], "y"),
    ]
    constants = {
        "k": sparse_array(12, 3, 3, 3),
        "kb": np.linspace(-1, 1, 12, dtype=np.float32),
        **{name: np.full(12, value, np.float32) for name, value in norm.items()},
        "w1": sparse_array(20, 12),
        "b1": np.linspace(-1, 1, 20, dtype=np.float32),
        "w2": sparse_array(20, 16),
        "b2": np.linspace(-1, 1, 16, dtype=np.float32),
        "k1": sparse_array(8, 1, 3, density=0.5),
        "w3": sparse_array(6, 8),
    } | ({"axis1": np.array([1])} if opset >= 13 else {})
    return model(nodes, {"x": ("n", 3, 12, 12)}, {"y": ("n", 6, 16)}, constants, opset=opset)


def test_the_range_is_not_empty():
    assert newest() >= 20


@pytest.mark.parametrize("opset", range(OLDEST, newest() + 1))
def test_every_opset(tmp_path, opset):
    report, result = lowered(everything(opset), tmp_path)
    assert {entry.domain: entry.version for entry in result.opset_import} == {"": opset, "ai.sparsify": 1}
    assert [layer.op for layer in report.layers if layer.decision == "sparse"] == [
        "Conv",
        "Gemm",
        "MatMul",
        "Conv",
        "MatMul",
    ]
    assert not {"Conv", "Gemm", "MatMul", "BatchNormalization", "Add"} & set(operators(result))
    onnx.checker.check_model(result, full_check=True)


@pytest.mark.parametrize("opset", [OLDEST, 12, 13, 20])
def test_clip_and_gelu_of_their_time(tmp_path, opset):
    """Clip takes its bounds as inputs from 11; Gelu is a node from 20."""
    gelu = opset >= 20
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Gelu", ["h"], "g") if gelu else node("Relu", ["h"], "g"),
        node("Clip", ["g", "low", "high"], "y"),
    ]
    bounds = {"low": np.array(-0.1, np.float32), "high": np.array(0.5, np.float32)}
    built = model(
        nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": sparse_array(24, 40)} | bounds, opset=opset
    )
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear", *(["Clip"] if gelu else [])]
    assert attributes(result.graph.node[0])["activation"] == ("gelu" if gelu else "clip")


def test_an_older_file_of_a_format_that_lists_weights_as_inputs_stays_as_it_is(tmp_path):
    built = everything(OLDEST)
    built.ir_version = 3
    for tensor in built.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        built.graph.input.append(info)
    report, result = lowered(built, tmp_path)
    assert report.nodes.sparse == 0
    assert "graph input" in report.layers[0].reason
    assert operators(result) == operators(built)
