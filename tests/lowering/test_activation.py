"""Activations are recognised by value: how many spellings they have does not matter, almost is not enough."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.lowering import epilogue
from sparsify.lowering.activation import find_activation
from sparsify.lowering.epilogue import KERNEL_ACTIVATIONS, fuse
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from tests.lowering.graphs import model, node, sparse_array

SCALARS = {"zero": 0.0, "one": 1.0, "six": 6.0, "three": 3.0, "low": -0.5, "high": 200.0, "almost": 1.001}


def graph_of(nodes, *, opset=20, ends=("y",)):
    """x · w = h, then the given nodes."""
    used = {name for item in nodes for name in item.input}
    constants = {name: np.array(value, np.float32) for name, value in SCALARS.items() if name in used}
    made = [node("MatMul", ["x", "w"], "h"), *nodes]
    shapes = dict.fromkeys(ends, ("n", 40))
    return Graph(model(made, {"x": ("n", 24)}, shapes, constants | {"w": sparse_array(24, 40)}, opset=opset))


SILU = {
    "gate": [node("Sigmoid", ["h"], "s"), node("Mul", ["h", "s"], "y")],
    "gate first": [node("Sigmoid", ["h"], "s"), node("Mul", ["s", "h"], "y")],
    "quotient": [
        node("Neg", ["h"], "n"),
        node("Exp", ["n"], "e"),
        node("Add", ["e", "one"], "d"),
        node("Div", ["h", "d"], "y"),
    ],
}


@pytest.mark.parametrize("form", SILU)
def test_silu(form):
    found = find_activation(graph_of(SILU[form]), "h")
    assert (found.kind, found.output, found.bounds) == ("silu", "y", None)
    assert len(found.nodes) == len(SILU[form])


@pytest.mark.parametrize(("alpha", "kind"), [(None, "silu"), (1.0, "silu"), (1.702, None)])
def test_swish(alpha, kind):
    swish = node("Swish", ["h"], "y", **({} if alpha is None else {"alpha": alpha}))
    found = find_activation(graph_of([swish], opset=24), "h")
    assert (found and found.kind) == kind


@pytest.mark.parametrize(
    ("nodes", "opset", "bounds"),
    [
        ([node("Clip", ["h", "zero", "six"], "y")], 11, (0.0, 6.0)),
        ([node("Clip", ["h", "low", "six"], "y")], 20, (-0.5, 6.0)),
        ([node("Clip", ["h"], "y", min=-0.5, max=6.0)], 10, (-0.5, 6.0)),
        ([node("Relu", ["h"], "r"), node("Min", ["r", "six"], "y")], 20, (0.0, 6.0)),
        ([node("Max", ["h", "low"], "r"), node("Min", ["six", "r"], "y")], 20, (-0.5, 6.0)),
        ([node("Clip", ["h", "zero", "high"], "y")], 20, (0.0, 200.0)),
    ],
)
def test_clip(nodes, opset, bounds):
    found = find_activation(graph_of(nodes, opset=opset), "h")
    assert (found.kind, found.bounds, found.output) == ("clip", bounds, "y")


@pytest.mark.parametrize("bounds", [("low", ""), ("", "six")])
def test_clip_with_one_bound(bounds):
    found = find_activation(graph_of([node("Clip", ["h", *bounds], "y")]), "h")
    least, most = found.bounds
    assert (least == -0.5, most == 6.0) == (bounds[0] != "", bounds[1] != "")
    assert max(-least, most) > 1e38


def test_clip_at_zero_is_relu_and_clip_without_bounds_nothing():
    assert find_activation(graph_of([node("Clip", ["h", "zero"], "y")]), "h").kind == "relu"
    assert find_activation(graph_of([node("Clip", ["h"], "y")]), "h") is None
    assert find_activation(graph_of([node("Identity", ["h"], "y")]), "h") is None


@pytest.mark.parametrize(
    "nodes",
    [
        pytest.param([node("HardSwish", ["h"], "y")], id="HardSwish"),
        pytest.param([node("HardSigmoid", ["h"], "y")], id="HardSigmoid"),
        pytest.param([node("LeakyRelu", ["h"], "y")], id="LeakyRelu"),
        pytest.param([node("Sigmoid", ["h"], "y")], id="Sigmoid"),
        pytest.param(
            [
                node("Add", ["h", "three"], "a"),
                node("Clip", ["a", "zero", "six"], "c"),
                node("Mul", ["h", "c"], "m"),
                node("Div", ["m", "six"], "y"),
            ],
            id="HardSwish in parts",
        ),
        pytest.param(
            [
                node("Mul", ["h", "almost"], "a"),
                node("Sigmoid", ["a"], "s"),
                node("Mul", ["h", "s"], "y"),
            ],
            id="almost SiLU",
        ),
        pytest.param(
            [node("Mul", ["h", "almost"], "a"), node("Clip", ["a", "zero", "six"], "y")], id="almost clip"
        ),
    ],
)
def test_others_are_left_alone(nodes):
    assert find_activation(graph_of(nodes), "h") is None


def test_the_longest_wanted_activation_wins():
    graph = graph_of([node("Relu", ["h"], "r"), node("Min", ["r", "six"], "y")])
    assert find_activation(graph, "h", {"relu", "clip"}).kind == "clip"
    found = find_activation(graph, "h", {"relu"})
    assert (found.kind, found.output) == ("relu", "r")


def test_a_value_that_others_read_keeps_its_node():
    nodes = [*SILU["gate"], node("Neg", ["s"], "z")]
    assert find_activation(graph_of(nodes, ends=("y", "z")), "h") is None


@pytest.mark.parametrize(("kind", "nodes"), [("silu", SILU["gate"]), ("clip", None)])
@pytest.mark.parametrize("known", [False, True])
def test_fused_where_the_kernels_know_it(kind, nodes, known, monkeypatch):
    monkeypatch.setattr(
        epilogue, "KERNEL_ACTIVATIONS", KERNEL_ACTIVATIONS | {kind} if known else KERNEL_ACTIVATIONS - {kind}
    )
    graph = graph_of(nodes or [node("Clip", ["h", "zero", "six"], "y")])
    (match,) = match_all(graph)
    fused = fuse(graph, match)
    assert fused.activation == (kind if known else "none")
    assert fused.clip == ((0.0, 6.0) if known and kind == "clip" else None)
    assert fused.output == ("y" if known else "h")
