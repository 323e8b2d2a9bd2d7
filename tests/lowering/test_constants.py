"""Weights are found behind the operators that ONNX Runtime folds, and nothing of those stays."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.lowering.constants import FOLDED
from sparsify.lowering.graph import Graph, Refused
from tests.lowering.graphs import lowered, model, node, operators, sparse_array

W = sparse_array(24, 40)
FLAT = W.reshape(-1)

# operator: nodes that make "w" [24, 40] from the constants
CHAINS = {
    "Identity": ([node("Identity", ["a"], "w")], {"a": W}),
    "Transpose": ([node("Transpose", ["a"], "w", perm=[1, 0])], {"a": W.T.copy()}),
    "Reshape": ([node("Reshape", ["a", "s"], "w")], {"a": FLAT.reshape(24, 5, 8), "s": np.array([0, -1])}),
    "Flatten": ([node("Flatten", ["a"], "w")], {"a": FLAT.reshape(24, 5, 8)}),
    "Squeeze": ([node("Squeeze", ["a", "s"], "w")], {"a": W[None], "s": np.array([0])}),
    "Unsqueeze": (
        [node("Unsqueeze", ["a", "s"], "b"), node("Squeeze", ["b"], "w")],
        {"a": W, "s": np.array([-1])},
    ),
    "Cast": ([node("Cast", ["a"], "w", to=TensorProto.FLOAT)], {"a": W.astype(ml_dtypes.bfloat16)}),
    "Mul": ([node("Mul", ["a", "m"], "w")], {"a": W + np.float32(1), "m": (W != 0).astype(np.float32)}),
    "Concat": ([node("Concat", ["a", "b"], "w", axis=1)], {"a": W[:, :10], "b": W[:, 10:]}),
}


@pytest.mark.parametrize("op", FOLDED)
def test_weight_behind_an_operator(tmp_path, op):
    nodes, constants = CHAINS[op]
    assert op in {item.op_type for item in nodes}
    built = model([*nodes, node("MatMul", ["x", "w"], "y")], {"x": ("n", 24)}, {"y": ("n", 40)}, constants)
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]
    assert report.layers[0].density == pytest.approx(np.count_nonzero(W) / W.size, abs=0.01)
    assert not set(constants) & {item.name for item in result.graph.initializer}


def test_weight_in_a_constant_node(tmp_path):
    nodes = [node("Constant", [], "w", value=numpy_helper.from_array(W)), node("MatMul", ["x", "w"], "y")]
    _, result = lowered(model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}), tmp_path)
    assert operators(result) == ["SparseLinear"]


def test_large_constant_node_becomes_an_initializer_that_stays_where_it_is_used(tmp_path):
    large = sparse_array(256, 128)
    nodes = [
        node("Constant", [], "w", value=numpy_helper.from_array(large)),
        node("MatMul", ["x", "w"], "h"),
        node("Add", ["h", "w"], "y"),
    ]
    built = model(nodes, {"x": (256, 256)}, {"y": (256, 128)})
    for layout, expected in (("dense", ["MatMul", "Add"]), ("csr", ["SparseLinear", "Add"])):
        _, result = lowered(built, tmp_path, layout=layout)
        assert operators(result) == expected
        assert "w" in [item.name for item in result.graph.initializer]


def test_a_product_with_a_runtime_value_is_no_constant():
    info = helper.make_tensor_value_info("m", TensorProto.FLOAT, W.shape)
    nodes = [node("Mul", ["m", "x"], "w"), node("Mul", ["m", "a"], "v"), node("Add", ["w", "v"], "y")]
    built = model(nodes, {"x": (24, 40)}, {"y": (24, 40)}, {"m": W, "a": W}, extra_inputs=[info])
    graph = Graph(built)
    assert graph.constant("w") is None
    assert isinstance(graph.constant("v"), Refused)


def test_constants_that_do_not_fit_their_operator_are_left_to_run_time():
    nodes = [node("Reshape", ["a", "s"], "w"), node("Add", ["x", "w"], "y")]
    built = model(nodes, {"x": (6,)}, {"y": (6,)}, {"a": np.ones((3, 2), np.float32), "s": np.array([6])})
    built.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.array([4]), "s"))
    assert Graph(built).constant("w") is None
