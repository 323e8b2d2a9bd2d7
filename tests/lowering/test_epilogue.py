"""What follows a node is fused where nothing else sees it, and only there."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.lowering.graphs import attributes, lowered, model, node, operators, sparse_array

W = sparse_array(24, 40)
BIAS = np.linspace(-1, 1, 40, dtype=np.float32)


def scalar(value: float) -> np.ndarray:
    return np.array(value, dtype=np.float32)


CONSTANTS = {
    "w": W,
    "half": scalar(0.5),
    "one": scalar(1.0),
    "root2": scalar(math.sqrt(2)),
    "inverse_root2": scalar(1 / math.sqrt(2)),
    "zero": scalar(0.0),
    "three": scalar(3.0),
    "c0": scalar(0.044715),
    "c1": scalar(math.sqrt(2 / math.pi)),
}


def after_matmul(nodes, *, outputs=("y",), inputs=None, constants=None, shape=(3, 24)):
    """x · w = h, then the given nodes."""
    out = (*shape[:-1], 40)
    given = {"x": shape} | dict.fromkeys(inputs or (), out)
    stored = CONSTANTS | (constants or {})
    used = {name for item in nodes for name in item.input} | {"w"}
    return model(
        [node("MatMul", ["x", "w"], "h"), *nodes],
        given,
        dict.fromkeys(outputs, out),
        {name: value for name, value in stored.items() if name in used},
    )


ERF_FORMS = {
    "half last": [
        node("Div", ["h", "root2"], "a"),
        node("Erf", ["a"], "b"),
        node("Add", ["b", "one"], "c"),
        node("Mul", ["h", "c"], "d"),
        node("Mul", ["d", "half"], "y"),
    ],
    "half first": [
        node("Mul", ["half", "h"], "e"),
        node("Mul", ["h", "inverse_root2"], "a"),
        node("Erf", ["a"], "b"),
        node("Add", ["one", "b"], "c"),
        node("Mul", ["e", "c"], "y"),
    ],
    "half on the inside": [
        node("Div", ["h", "root2"], "a"),
        node("Erf", ["a"], "b"),
        node("Add", ["b", "one"], "c"),
        node("Mul", ["c", "half"], "d"),
        node("Mul", ["d", "h"], "y"),
    ],
}
TANH_FORMS = {
    "power": [
        node("Pow", ["h", "three"], "p"),
        node("Mul", ["c0", "p"], "q"),
        node("Add", ["h", "q"], "r"),
        node("Mul", ["r", "c1"], "s"),
        node("Tanh", ["s"], "t"),
        node("Add", ["one", "t"], "u"),
        node("Mul", ["half", "h"], "v"),
        node("Mul", ["v", "u"], "y"),
    ],
    "products": [
        node("Mul", ["h", "h"], "p"),
        node("Mul", ["p", "h"], "p3"),
        node("Mul", ["p3", "c0"], "q"),
        node("Add", ["q", "h"], "r"),
        node("Mul", ["c1", "r"], "s"),
        node("Tanh", ["s"], "t"),
        node("Add", ["t", "one"], "u"),
        node("Mul", ["h", "u"], "v"),
        node("Mul", ["v", "half"], "y"),
    ],
}


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        pytest.param([node("Relu", ["h"], "y")], "relu", id="Relu"),
        pytest.param([node("Max", ["h", "zero"], "y")], "relu", id="Max with 0"),
        pytest.param([node("Gelu", ["h"], "y")], "gelu", id="Gelu"),
        pytest.param([node("Gelu", ["h"], "y", approximate="tanh")], "gelu_tanh", id="Gelu tanh"),
        pytest.param([node("Sigmoid", ["h"], "a"), node("Mul", ["h", "a"], "y")], "silu", id="SiLU"),
        pytest.param([node("Clip", ["h", "zero", "three"], "y")], "clip", id="Clip"),
        *[pytest.param(nodes, "gelu", id=f"erf, {name}") for name, nodes in ERF_FORMS.items()],
        *[pytest.param(nodes, "gelu_tanh", id=f"tanh, {name}") for name, nodes in TANH_FORMS.items()],
    ],
)
def test_activation_is_fused_however_it_is_spelled(tmp_path, nodes, kind):
    _, result = lowered(after_matmul(nodes), tmp_path)
    assert operators(result) == ["SparseLinear"]
    assert attributes(result.graph.node[0])["activation"] == kind
    assert not {"half", "one"} & {item.name for item in result.graph.initializer}


def test_clip_carries_its_bounds_behind_a_residual(tmp_path):
    nodes = [node("Add", ["h", "r"], "s"), node("Clip", ["s", "half", "three"], "y")]
    _, result = lowered(after_matmul(nodes, inputs=["r"]), tmp_path)
    found = attributes(result.graph.node[0])
    assert operators(result) == ["SparseLinear"]
    assert (found["activation"], found["clip_min"], found["clip_max"]) == ("clip", 0.5, 3.0)


def test_almost_gelu_is_not_taken_for_gelu(tmp_path):
    nodes = [*ERF_FORMS["half last"][:-1], node("Mul", ["d", "nearly"], "y")]
    _, result = lowered(after_matmul(nodes, constants={"nearly": scalar(0.5001)}), tmp_path)
    assert attributes(result.graph.node[0])["activation"] == "none"
    assert operators(result)[1:] == ["Div", "Erf", "Add", "Mul", "Mul"]


@pytest.mark.parametrize("shape", [(40,), (1, 40), (1,), ()])
@pytest.mark.parametrize("order", [["h", "b"], ["b", "h"]])
def test_constant_addition_becomes_the_bias(tmp_path, shape, order):
    bias = BIAS.reshape(shape) if shape in ((40,), (1, 40)) else np.full(shape, 0.5, np.float32)
    nodes = [node("Add", order, "z"), node("Relu", ["z"], "y")]
    _, result = lowered(after_matmul(nodes, constants={"b": bias}), tmp_path)
    assert operators(result) == ["SparseLinear"]


def test_addition_that_varies_along_the_rows_is_no_bias(tmp_path):
    constants = {"b": sparse_array(3, 40, density=1)}
    _, result = lowered(after_matmul([node("Add", ["h", "b"], "y")], constants=constants), tmp_path)
    assert operators(result) == ["SparseLinear", "Add"]


def test_addition_that_enlarges_the_result_is_no_bias(tmp_path):
    built = model(
        [node("MatMul", ["x", "w"], "h"), node("Add", ["h", "b"], "y")],
        {"x": (3, 24)},
        {"y": (1, 3, 40)},
        {"w": W, "b": BIAS.reshape(1, 1, 40)},
    )
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear", "Add"]


def test_value_that_is_an_output_is_not_fused_away(tmp_path):
    _, result = lowered(after_matmul([node("Relu", ["h"], "y")], outputs=("y", "h")), tmp_path)
    assert operators(result) == ["SparseLinear", "Relu"]


def test_value_with_a_second_reader_is_not_fused_away(tmp_path):
    nodes = [node("Relu", ["h"], "a"), node("Neg", ["h"], "b"), node("Add", ["a", "b"], "y")]
    _, result = lowered(after_matmul(nodes), tmp_path)
    assert operators(result) == ["SparseLinear", "Relu", "Neg", "Add"]


@pytest.mark.parametrize("shape", [(3, 24), ("n", 24), ("n", "m", 24)])
def test_residual_of_equal_shape_is_fused(tmp_path, shape):
    nodes = [
        node("Add", ["h", "b"], "z"),
        node("Add", ["r", "z"], "s"),
        node("Relu", ["s"], "y"),
    ]
    built = after_matmul(nodes, inputs=["r"], constants={"b": BIAS}, shape=shape)
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear"]
    assert result.graph.node[0].input[2] == "r"


@pytest.mark.parametrize("shape", [(1, 40), (None, 40), ("m", 40)])
def test_residual_that_may_broadcast_is_not_fused(tmp_path, shape):
    built = model(
        [node("MatMul", ["x", "w"], "h"), node("Add", ["h", "r"], "y")],
        {"x": ("n", 24), "r": shape},
        {"y": (None, 40)},
        {"w": W},
    )
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear", "Add"]


def test_value_added_to_itself_is_no_residual(tmp_path):
    _, result = lowered(after_matmul([node("Add", ["h", "h"], "y")]), tmp_path)
    assert operators(result) == ["SparseLinear", "Add"]


def test_of_two_branches_that_meet_one_takes_the_addition(tmp_path):
    nodes = [
        node("MatMul", ["x", "w"], "a"),
        node("MatMul", ["x", "w2"], "b"),
        node("Add", ["a", "b"], "s"),
        node("Relu", ["s"], "y"),
    ]
    built = model(nodes, {"x": ("n", 24)}, {"y": ("n", 40)}, {"w": W, "w2": sparse_array(24, 40, seed=5)})
    _, result = lowered(built, tmp_path)
    assert operators(result) == ["SparseLinear", "SparseLinear"]
    assert [attributes(item)["activation"] for item in result.graph.node] == ["none", "relu"]
