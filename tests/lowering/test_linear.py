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


@pytest.mark.parametrize("trans", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("weight_on_the_left", [False, True])
@pytest.mark.parametrize("c", [(40, 5), (40, 1), (1, 5), (5,), (1,)])
def test_gemm_transposed_on_either_side_with_any_addend(tmp_path, trans, weight_on_the_left, c):
    """Y [40, 5] = alpha · A [40, 24] · B [24, 5] + beta · C."""
    stored = {"w": sparse_array(40, 24) if weight_on_the_left else sparse_array(24, 5)}
    given = (24, 5) if weight_on_the_left else (40, 24)
    turned = trans[0] if weight_on_the_left else trans[1]
    if turned:
        stored["w"] = np.ascontiguousarray(stored["w"].T)
    if trans[1] if weight_on_the_left else trans[0]:
        given = given[::-1]
    stored["c"] = sparse_array(*c, density=1, seed=2)
    order = ["w", "x", "c"] if weight_on_the_left else ["x", "w", "c"]
    gemm = node("Gemm", order, "y", transA=trans[0], transB=trans[1], alpha=0.5, beta=-2.0)
    _, result = lowered(model([gemm], {"x": given}, {"y": (40, 5)}, stored), tmp_path)
    sparse = [name for name in operators(result) if name.startswith("Sparse")]
    assert sparse == ["SparseConv" if weight_on_the_left and not trans[1] else "SparseLinear"]
    bias = {(1,)} | ({(40, 1)} if weight_on_the_left else {(1, 5), (5,)})
    assert ("Add" in operators(result)) == (c not in bias)


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_one_column_is_a_linear_layer(tmp_path, op):
    weight = np.ascontiguousarray(W.T)
    built = model([node(op, ["w", "x"], "y")], {"x": (24, 1)}, {"y": (40, 1)}, {"w": weight})
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["Squeeze", "SparseLinear", "Unsqueeze"]


@pytest.mark.parametrize("beta", [1.0, 0.5])
@pytest.mark.parametrize("c", [("n", 40), (1, 40), (40,), ("n", 1)])
def test_gemm_adds_a_runtime_value(tmp_path, beta, c):
    gemm = node("Gemm", ["x", "w", "r"], "y", beta=beta)
    built = model([gemm], {"x": ("n", 24), "r": c}, {"y": ("n", 40)}, {"w": W})
    _, result = lowered(built, tmp_path)
    (sparse,) = (item for item in result.graph.node if item.op_type == "SparseLinear")
    assert (sparse.input[2] == "r") == (beta == 1.0 and c == ("n", 40))
    assert ("Mul" in operators(result)) == (beta != 1.0)


@pytest.mark.parametrize(
    "shape", [(24, 3), ("n", "m"), (2, 24, 3), ("n", 24, "m"), (2, "n", 24, 3), (24,), (24, 1), ("n", 24, 1)]
)
def test_matmul_with_a_constant_on_the_left(tmp_path, shape):
    given = (24, "m") if shape == ("n", "m") else shape
    out = (40,) if len(given) == 1 else (*given[:-2], 40, given[-1])
    bias = np.linspace(-1, 1, 40, dtype=np.float32).reshape((-1, 1) if len(given) > 1 else -1)
    nodes = [
        node("MatMul", ["w", "x"], "h"),
        node("Add", ["h", "b"], "i"),
        node("Add", ["i", "r"], "s"),
        node("Relu", ["s"], "y"),
    ]
    constants = {"w": np.ascontiguousarray(W.T), "b": bias}
    report, result = lowered(model(nodes, {"x": given, "r": out}, {"y": out}, constants), tmp_path)
    assert report.layers[0].shape == (40, 24)
    assert operators(result).count("Add") == (1 if len(given) == 4 else 0)
    assert {"SparseLinear", "SparseConv"} & set(operators(result))


def test_consecutive_left_products_stay_in_the_operator_form(tmp_path):
    nodes = [node("MatMul", ["w", "x"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["v", "r"], "y")]
    constants = {"w": np.ascontiguousarray(W.T), "v": sparse_array(8, 40)}
    _, result = lowered(model(nodes, {"x": (24, "m")}, {"y": (8, "m")}, constants), tmp_path)
    assert operators(result) == ["Unsqueeze", "SparseConv", "SparseConv", "Squeeze"]


@pytest.mark.parametrize(
    ("shape", "constants", "out", "reason"),
    [
        ((2, "n", 24, "m"), {}, (2, None, 40, None), "sizes are not in the file"),
        ((24, 3), {"w": sparse_array(2, 40, 24)}, (2, 40, 3), "3 dimensions"),
        ((24, 3), {"x": sparse_array(24, 3)}, (40, 3), "both operands are constant"),
    ],
)
def test_left_products_left_alone_with_a_reason(tmp_path, shape, constants, out, reason):
    stored = {"w": np.ascontiguousarray(W.T)} | constants
    inputs = {name: value for name, value in {"x": shape, "z": (1,)}.items() if name not in stored}
    nodes = [node("MatMul", ["w", "x"], "h"), node("Mul", ["h", "z"], "y")]
    report, result = lowered(model(nodes, inputs, {"y": out}, stored), tmp_path)
    assert operators(result) == ["MatMul", "Mul"]
    assert reason in report.layers[0].reason


def test_leading_axes_of_size_one_are_no_stack(tmp_path):
    built = model([node("MatMul", ["x", "w"], "y")], {"x": (2, 3, 24)}, {"y": (2, 3, 40)}, {"w": W[None]})
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]


@pytest.mark.parametrize(
    ("stack", "out"), [(sparse_array(2, 24, 40), (2, 3, 40)), (W[None, None], (1, 2, 3, 40))]
)
def test_matmul_with_a_stack_of_weights_stays(tmp_path, stack, out):
    built = model([node("MatMul", ["x", "w"], "y")], {"x": (2, 3, 24)}, {"y": out}, {"w": stack})
    report, _ = lowered(built, tmp_path)
    assert f"{stack.ndim} dimensions" in report.layers[0].reason


def test_vector_times_weight(tmp_path):
    built = model([node("MatMul", ["x", "w"], "y")], {"x": (24,)}, {"y": (40,)}, {"w": W})
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]


def test_product_of_two_runtime_values_is_not_reported(tmp_path):
    built = model([node("MatMul", ["a", "b"], "y")], {"a": (2, 3), "b": (3, 4)}, {"y": (2, 4)})
    report, _ = lowered(built, tmp_path)
    assert report.layers == ()


def test_weight_shared_by_two_nodes_is_stored_once(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "a"), node("MatMul", ["z", "w"], "b"), node("Add", ["a", "b"], "y")]
    built = model(nodes, {"x": ("n", 24), "z": ("n", 24)}, {"y": ("n", 40)}, {"w": W})
    _, result = lowered(built, tmp_path)
    first, second = (item for item in result.graph.node if item.op_type == "SparseLinear")
    assert list(first.input[3:]) == list(second.input[3:])
    names = [item.name for item in result.graph.initializer]
    assert len(names) == len(set(names))
    assert "w" not in names


def test_equal_weights_under_other_names_and_other_forms_are_stored_once(tmp_path):
    nodes = [
        node("Transpose", ["t"], "turned", perm=[1, 0]),
        node("MatMul", ["x", "w"], "a"),
        node("MatMul", ["x", "turned"], "b"),
        node("Gemm", ["x", "t"], "c", transB=1),
        node("Sum", ["a", "b", "c"], "y"),
    ]
    constants = {"w": W, "t": np.ascontiguousarray(W.T)}
    _, result = lowered(model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, constants), tmp_path)
    weights = {tuple(item.input[3:]) for item in result.graph.node if item.op_type == "SparseLinear"}
    assert len(weights) == 1
    assert "t" not in [item.name for item in result.graph.initializer]


def test_weight_that_is_a_graph_output_stays_one(tmp_path):
    nodes = [node("MatMul", ["x", "w"], "y"), node("Transpose", ["w"], "turned")]
    outputs = {"y": ("n", 40), "w": (24, 40), "turned": (40, 24)}
    _, result = lowered(model(nodes, {"x": ("n", 24)}, outputs, {"w": W}), tmp_path)
    assert operators(result) == ["SparseLinear", "Transpose"]
    assert "w" in [item.name for item in result.graph.initializer]


def test_weight_that_another_operator_reads_stays_in_the_file(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("ReduceSum", ["w"], "total", keepdims=0),
        node("Mul", ["h", "total"], "y"),
    ]
    _, result = lowered(model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": W}), tmp_path)
    assert "SparseLinear" in operators(result)
    assert "w" in [item.name for item in result.graph.initializer]
