"""The estimate decides as measurements do where those are clear, and says why."""

from __future__ import annotations

import onnx
import pytest

from sparsify.lowering import lower
from sparsify.lowering.cost import columns, decide
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from tests.lowering.graphs import model, node, sparse_array


def linear(out, k, shape, density):
    weight = sparse_array(k, out, density=density)
    built = model([node("MatMul", ["x", "w"], "y")], {"x": (*shape, k)}, {"y": (*shape, out)}, {"w": weight})
    graph = Graph(built)
    (match,) = match_all(graph)
    return graph, match


def convolution(out, channels, kernel, side, density):
    weight = sparse_array(out, channels, kernel, kernel, density=density)
    conv = node("Conv", ["x", "w"], "y", pads=[kernel // 2] * 4)
    built = model([conv], {"x": ("n", channels, side, side)}, {"y": ("n", out, side, side)}, {"w": weight})
    graph = Graph(built)
    (match,) = match_all(graph)
    return graph, match


@pytest.mark.parametrize(
    ("made", "layout"),
    [
        (linear(384, 384, ("n", "s"), 0.2), "csr"),
        (linear(1024, 1024, ("n",), 0.1), "csr"),
        (linear(1024, 1024, (1,), 0.2), "csr"),
        (linear(1024, 1024, ("n", "s"), 0.7), None),
        (linear(1024, 1024, (1,), 0.9), None),
        (linear(16, 32, ("n",), 0.05), None),
        (convolution(256, 256, 3, 14, 0.1), "csr"),
        (convolution(256, 256, 3, 14, 0.7), None),
        (convolution(16, 16, 3, 8, 0.1), None),
        (convolution(256, 64, 1, 56, 0.1), "csr"),
        (convolution(256, 256, 3, 4, 0.25), "csr"),
        (convolution(128, 64, 3, 8, 0.25), "csr"),
        (convolution(64, 3, 3, 16, 0.25), None),
    ],
)
def test_clear_cases(made, layout):
    graph, match = made
    decision = decide(match, graph)
    assert decision.layout == layout
    assert f"density {match.density:.2f}" in decision.reason


def test_small_nodes_are_told_from_dense_ones():
    graph, match = linear(16, 32, (4,), 0.05)
    assert "too small" in decide(match, graph).reason
    graph, match = linear(1024, 1024, (64,), 0.9)
    assert "× as fast as dense" in decide(match, graph).reason


def test_sparser_is_never_estimated_slower():
    decisions = [
        decide(*reversed(linear(256, 256, (64,), density))).layout for density in (0.9, 0.5, 0.2, 0.05)
    ]
    assert decisions == sorted(decisions, key=lambda layout: layout is not None)
    assert decisions[0] is None
    assert decisions[-1] == "csr"


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 5), (15,)), (("n",), (1, 16, 128)), ((2, "s"), (32, 256, 2048))]
)
def test_columns_follow_the_known_sizes(shape, expected):
    graph, match = linear(8, 8, shape, 0.5)
    assert columns(match, graph) == expected


@pytest.mark.parametrize(("layout", "sparse"), [("csr", 2), ("dense", 0), (None, 1)])
def test_forced_layouts(tmp_path, layout, sparse):
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "v"], "y")]
    constants = {"w": sparse_array(512, 512, density=0.1), "v": sparse_array(512, 512, density=0.9)}
    onnx.save(model(nodes, {"x": (64, 512)}, {"y": (64, 512)}, constants), tmp_path / "a.onnx")
    assert lower(tmp_path / "a.onnx", tmp_path / "b.onnx", layout=layout).nodes.sparse == sparse
