"""float16 files: the operator computes in float32 between Casts, and neighbours need none between them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from sparsify.errors import ParityError
from sparsify.lowering.graph import Graph
from sparsify.lowering.parity import compare
from tests.lowering.graphs import attributes, lowered, model, node, operators, sparse_array
from tests.lowering.test_epilogue import ERF_FORMS, TANH_FORMS

HALF = TensorProto.FLOAT16


def half_model(nodes, inputs, outputs, constants):
    stored = {
        name: value.astype(np.float16) if value.dtype == np.float32 else value
        for name, value in constants.items()
    }
    return model(nodes, inputs, outputs, stored, types=dict.fromkeys([*inputs, *outputs], HALF))


def test_linear_layers_in_a_row_share_one_cast_on_each_side(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Add", ["h", "b"], "i"),
        node("Relu", ["i"], "j"),
        node("Gemm", ["j", "v", "c"], "y"),
    ]
    constants = {
        "w": sparse_array(24, 40),
        "b": np.linspace(-1, 1, 40, dtype=np.float32),
        "v": sparse_array(40, 16),
        "c": np.linspace(-1, 1, 16, dtype=np.float32),
    }
    built = half_model(nodes, {"x": ("n", 24)}, {"y": ("n", 16)}, constants)
    report, result = lowered(built, tmp_path)
    assert operators(result) == ["Cast", "SparseFeedForward", "Cast"]
    assert report.nodes.sparse == 2
    assert report.max_abs_error < 0.05
    onnx.checker.check_model(result, full_check=True)


def test_several_readers_share_a_cast_and_other_readers_keep_float16(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("MatMul", ["x", "v"], "b"),
        node("Mul", ["a", "b"], "c"),
        node("MatMul", ["c", "u"], "d"),
        node("Add", ["d", "a"], "y"),
    ]
    constants = {name: sparse_array(24, 24, seed=seed) for seed, name in enumerate("wvu")}
    _, result = lowered(half_model(nodes, {"x": ("n", 24)}, {"y": ("n", 24)}, constants), tmp_path)
    names = operators(result)
    assert names.count("SparseLinear") == 3
    assert names.count("Cast") == 5  # x and c in, a and b out for Mul, y out; a's float32 is the residual
    assert "Add" not in names


@pytest.mark.parametrize("size", [(9, 9), (9,)])
def test_convolutions(tmp_path, size):
    kernel = (3,) * len(size)
    nodes = [
        node("Conv", ["x", "w", "b"], "h", pads=[1, 1] * len(size)),
        node("BatchNormalization", ["h", "g", "s", "m", "v"], "i"),
        node("Relu", ["i"], "y"),
    ]
    constants = {"w": sparse_array(8, 5, *kernel), "b": np.ones(8, np.float32)}
    constants |= {name: np.full(8, 0.5, np.float32) for name in "gsmv"}
    built = half_model(nodes, {"x": ("n", 5, *size)}, {"y": ("n", 8, *size)}, constants)
    _, result = lowered(built, tmp_path)
    assert set(operators(result)) <= {"Cast", "Unsqueeze", "SparseConv", "Squeeze"}
    assert attributes(next(n for n in result.graph.node if n.op_type == "SparseConv"))["activation"] == "relu"


@pytest.mark.parametrize(
    ("nodes", "kind"), [(ERF_FORMS["half last"], "gelu"), (TANH_FORMS["power"], "gelu_tanh")]
)
def test_gelu_with_constants_of_three_digits(tmp_path, nodes, kind):
    scalars = {"half": 0.5, "one": 1, "root2": 2**0.5, "three": 3, "c0": 0.044715, "c1": (2 / np.pi) ** 0.5}
    used = {name for item in nodes for name in item.input}
    constants = {name: np.array(value, np.float32) for name, value in scalars.items() if name in used}
    built = half_model(
        [node("MatMul", ["x", "w"], "h"), *nodes],
        {"x": ("n", 24)},
        {"y": ("n", 40)},
        constants | {"w": sparse_array(24, 40)},
    )
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["Cast", "SparseLinear", "Cast"]
    assert attributes(result.graph.node[1])["activation"] == kind


@pytest.mark.parametrize(("beta", "c"), [(1.0, ("n", 40)), (0.5, (1, 40))])
def test_addends_keep_their_type(tmp_path, beta, c):
    gemm = node("Gemm", ["x", "w", "r"], "y", beta=beta)
    built = half_model([gemm], {"x": ("n", 24), "r": c}, {"y": ("n", 40)}, {"w": sparse_array(24, 40)})
    _, result = lowered(built, tmp_path)
    assert "SparseLinear" in operators(result)
    onnx.checker.check_model(result, full_check=True)


def test_weights_that_are_only_stored_in_float16_need_no_cast_at_run_time(tmp_path):
    nodes = [node("Cast", ["w"], "w32", to=TensorProto.FLOAT), node("MatMul", ["x", "w32"], "y")]
    stored = {"w": sparse_array(24, 40).astype(np.float16)}
    built = model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, stored)
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]
    assert Graph(built).epsilon == 0


def test_parity_allows_float16_its_rounding_and_no_wrong_weight():
    reference = {"y": np.random.default_rng(0).standard_normal((50, 50)).astype(np.float32)}
    rounded = {"y": reference["y"].astype(np.float16).astype(np.float32)}
    with pytest.raises(ParityError):
        compare(reference, rounded, what="a against b")
    assert compare(reference, rounded, what="a against b", epsilon=2.0**-10) > 0
    rounded["y"][3, 4] += 0.1
    with pytest.raises(ParityError):
        compare(reference, rounded, what="a against b", epsilon=2.0**-10)
