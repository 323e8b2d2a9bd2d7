"""MatMul and Gemm become SparseLinear with the same results, or stay with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from tests.lowering.graphs import lowered, model, node, operators, sparse_array

W = sparse_array(24, 40)  # [in, out]


@pytest.mark.parametrize("shape", [("n", 24), (2, "n", 24), (2, 3, 5, 24), (1, 24)])
def test_matmul_of_any_rank(tmp_path, shape):
    built = model([node("MatMul", ["x", "w"], "y")], {"x": shape}, {"y": (*shape[:-1], 40)}, {"w": W})
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]
    assert report.layers[0].shape == (40, 24)
    assert report.layers[0].density == pytest.approx(np.count_nonzero(W) / W.size)


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0), (2.0, 0.0)])
@pytest.mark.parametrize("c", [None, (), (1,), (40,), (1, 40), (1, 1)])
def test_gemm_forms(tmp_path, trans_b, alpha, beta, c):
    constants = {"w": np.ascontiguousarray(W.T) if trans_b else W}
    inputs = ["x", "w"]
    if c is not None:
        constants["c"] = np.random.default_rng(1).standard_normal(c).astype(np.float32).reshape(c)
        inputs.append("c")
    gemm = node("Gemm", inputs, "y", transB=trans_b, alpha=alpha, beta=beta)
    report, result = lowered(model([gemm], {"x": ("n", 24)}, {"y": ("n", 40)}, constants), tmp_path)
    assert operators(result) == ["SparseLinear"]
    assert report.nodes.sparse == 1


def test_gemm_adds_a_runtime_matrix_of_the_output_shape(tmp_path):
    gemm = node("Gemm", ["x", "w", "r"], "y")
    built = model([gemm], {"x": ("n", 24), "r": ("n", 40)}, {"y": ("n", 40)}, {"w": W})
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]
    assert result.graph.node[0].input[2] == "r"


@pytest.mark.parametrize(
    ("inputs", "attributes", "constants", "reason"),
    [
        (["x", "w"], {"transA": 1}, {"w": sparse_array(4, 40)}, "transA"),
        (["x", "w", "c"], {}, {"w": W, "c": sparse_array(4, 40, density=1)}, "varies along the batch"),
        (["x", "w", "r"], {"beta": 0.5}, {"w": W}, "run-time value"),
        (["w2", "x"], {}, {"w2": sparse_array(6, 4)}, "left operand"),
    ],
)
def test_gemm_left_alone_with_a_reason(tmp_path, inputs, attributes, constants, reason):
    rows = 24 if attributes.get("transA") else constants.get("w2", np.zeros((4, 1))).shape[0]
    given = {"x": (4, 24)} | ({"r": (4, 40)} if "r" in inputs else {})
    columns = 24 if "w2" in constants else 40
    built = model([node("Gemm", inputs, "y", **attributes)], given, {"y": (rows, columns)}, constants)
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["Gemm"]
    assert reason in report.layers[0].reason
    assert report.nodes.dense == 1


def test_matmul_with_a_constant_on_the_left_stays(tmp_path):
    built = model([node("MatMul", ["w", "x"], "y")], {"x": (40, 3)}, {"y": (24, 3)}, {"w": W})
    report, _ = lowered(built, tmp_path)
    assert "left operand" in report.layers[0].reason


def test_matmul_with_a_stack_of_weights_stays(tmp_path):
    stack = sparse_array(2, 24, 40)
    built = model([node("MatMul", ["x", "w"], "y")], {"x": (2, 3, 24)}, {"y": (2, 3, 40)}, {"w": stack})
    report, _ = lowered(built, tmp_path)
    assert "3 dimensions" in report.layers[0].reason


def test_product_of_two_runtime_values_is_not_reported(tmp_path):
    built = model([node("MatMul", ["a", "b"], "y")], {"a": (2, 3), "b": (3, 4)}, {"y": (2, 4)})
    report, _ = lowered(built, tmp_path)
    assert report.layers == ()


def test_weight_behind_transpose_and_identity(tmp_path):
    nodes = [
        node("Identity", ["w"], "same"),
        node("Transpose", ["same"], "turned", perm=[1, 0]),
        node("MatMul", ["x", "turned"], "y"),
    ]
    built = model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": np.ascontiguousarray(W.T)})
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]
    assert "w" not in [item.name for item in result.graph.initializer]


def test_weight_in_a_constant_node(tmp_path):
    from onnx import numpy_helper

    nodes = [
        node("Constant", [], "w", value=numpy_helper.from_array(W)),
        node("MatMul", ["x", "w"], "y"),
    ]
    _, result = lowered(model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}), tmp_path)
    assert operators(result) == ["SparseLinear"]


def test_weight_shared_by_two_nodes_is_stored_once(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["z", "w"], "b"), node("Add", ["a", "b"], "y")]
    built = model(nodes, {"x": ("n", 24), "z": ("n", 24)}, {"y": ("n", 40)}, {"w": W})
    _, result = lowered(built, tmp_path)
    first, second = (item for item in result.graph.node if item.op_type == "SparseLinear")
    assert list(first.input[3:]) == list(second.input[3:])
    names = [item.name for item in result.graph.initializer]
    assert len(names) == len(set(names))
    assert "w" not in names


def test_weight_that_another_operator_reads_stays_in_the_file(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("ReduceSum", ["w"], "total", keepdims=0),
        node("Mul", ["h", "total"], "y"),
    ]
    _, result = lowered(model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": W}), tmp_path)
    assert "SparseLinear" in operators(result)
    assert "w" in [item.name for item in result.graph.initializer]
