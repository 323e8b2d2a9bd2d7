"""The estimate decides as measurements do where those are clear, and says why."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest

from sparsify.lowering import cost, lower
from sparsify.lowering.candidate import Candidate
from sparsify.lowering.cost import FILL, Machine, columns, decide, storage, times
from sparsify.lowering.graph import Graph
from sparsify.lowering.kernel_costs import COSTS
from sparsify.lowering.matching import match_all
from sparsify.lowering.neighbours import beside_dense
from sparsify.runtime import layouts
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


HERE = Machine("avx512", 1)


def in_blocks(graph, match, rows):
    """The same node with zeros and non-zeros in blocks of `rows` outputs."""
    kept = np.repeat(match.weight[::rows] != 0, rows, axis=0)
    weight = np.where(kept, np.float32(1), np.float32(0))
    return graph, dataclasses.replace(match, weight=weight)


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
    decision = decide(match, graph, HERE)
    assert decision.layout == layout
    assert f"density {match.density:.2f}" in decision.reason


def test_small_nodes_are_told_from_dense_ones():
    graph, match = linear(16, 32, (4,), 0.05)
    assert "too small" in decide(match, graph, HERE).reason
    graph, match = linear(1024, 1024, (64,), 0.9)
    assert "× as fast as dense" in decide(match, graph, HERE).reason


def test_sparser_is_never_estimated_slower():
    decisions = [
        decide(*reversed(linear(256, 256, (64,), density)), HERE).layout for density in (0.9, 0.5, 0.2, 0.05)
    ]
    assert decisions == sorted(decisions, key=lambda layout: layout is not None)
    assert decisions[0] is None
    assert decisions[-1] == "csr"


def test_blocks_are_told_from_single_weights():
    graph, match = linear(512, 512, (1,), 0.15)
    assert list(storage(match)) == ["csr"]
    for rows in (2, 4, 8, 16):
        _, blocked = in_blocks(graph, match, rows)
        counts = storage(blocked)
        assert list(counts) == ["csr", *(f"blocks-{n}" for n in (2, 4, 8, 16) if n <= rows)]
        assert len(set(counts.values())) == 1
    graph, blocked = in_blocks(*linear(512, 512, (1,), 0.15), 16)
    decision = decide(blocked, graph, HERE)
    assert decision.layout == "blocks-16"
    assert "csr" in decision.reason


def test_blocks_with_holes_are_looked_at_up_to_a_quarter_of_zeros():
    _, match = in_blocks(*linear(64, 64, (1,), 0.3), 4)
    for holes, expected in ((0.1, True), (0.3, False)):
        weight = match.weight * (np.random.default_rng(0).random(match.weight.shape) >= holes)
        counts = storage(dataclasses.replace(match, weight=weight.astype(np.float32)))
        assert ("blocks-4" in counts) == expected
        assert all(count <= FILL * counts["csr"] for count in counts.values())


@pytest.mark.parametrize("made", [linear(512, 512, (64,), 0.25), convolution(128, 128, 3, 14, 0.25)])
def test_more_threads_and_scalar_code_lower_an_estimate(made):
    graph, match = made
    (size,) = columns(match, graph)
    gains = {name: times(match, size, Machine(name)).speedup for name in COSTS}
    assert min(gains, key=gains.__getitem__) == "scalar"
    assert decide(match, graph, Machine("scalar")).layout is None
    assert (
        gains["avx512"]
        > times(match, size, Machine(threads=2)).speedup
        > times(match, size, Machine(threads=8)).speedup
    )


def test_every_kernel_costs_something_and_every_layout_with_numbers_exists():
    for costs in COSTS.values():
        for kernels in (costs.linear, costs.conv):
            assert "csr" in kernels
            assert set(kernels) <= set(layouts.LAYOUTS)
            assert all(min(k.call, k.pack, k.rate, k.group) > 0 and k.half >= 0 for k in kernels.values())


def test_an_instruction_set_without_numbers_stays_dense():
    graph, match = linear(1024, 1024, (1,), 0.25)
    assert decide(match, graph, Machine("abacus")).layout is None


def test_a_full_weight_and_one_that_is_nearly_sparse_enough_say_so():
    graph, match = linear(1024, 1024, (64,), 1.0)
    assert "next to no zeros" in decide(match, graph, HERE).reason
    graph, match = linear(1024, 1024, (64,), 0.6)
    decision = decide(match, graph, HERE)
    assert decision.layout is None
    enough = float(decision.reason.rpartition(" ")[2])
    assert decide(*reversed(linear(1024, 1024, (64,), enough - 0.02)), HERE).layout == "csr"
    assert decide(*reversed(linear(1024, 1024, (64,), enough + 0.08)), HERE).layout is None


def test_sizes_that_are_given_replace_those_that_are_assumed():
    graph, match = linear(256, 256, ("n",), 0.2)
    assert columns(match, graph, [{"y": (64, 256)}, {"y": (8, 256)}]) == (8, 64)
    assert "on 64 rows" in decide(match, graph, HERE, shapes=[{"y": (64, 256)}]).reason
    graph, match = convolution(64, 64, 3, 14, 0.2)
    assert columns(match, graph, [{"y": (4, 64, 14, 14)}]) == (784,)


@pytest.mark.parametrize(
    ("shape", "expected"), [((3, 5), (15,)), (("n",), (1, 16, 128)), ((2, "s"), (32, 256, 2048))]
)
def test_columns_follow_the_known_sizes(shape, expected):
    graph, match = linear(8, 8, shape, 0.5)
    assert columns(match, graph) == expected


@pytest.mark.parametrize(("layout", "sparse"), [("csr", 2), ("dense", 0), (None, 1)])
def test_forced_layouts(tmp_path, monkeypatch, layout, sparse):
    monkeypatch.setattr(cost, "selected_kernel", lambda: "avx512")
    nodes = [node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "v"], "y")]
    constants = {"w": sparse_array(512, 512, density=0.1), "v": sparse_array(512, 512, density=0.9)}
    onnx.save(model(nodes, {"x": (64, 512)}, {"y": (64, 512)}, constants), tmp_path / "a.onnx")
    assert lower(tmp_path / "a.onnx", tmp_path / "b.onnx", layout=layout).nodes.sparse == sparse


def chain(channels, groups):
    """1×1, 3×3 in groups, 1×1 convolutions with activations between them, on 14×14 pixels."""
    constants = {
        "a": sparse_array(channels, channels, 1, 1, density=0.1),
        "b": sparse_array(channels, channels // groups, 3, 3, density=0.1 if groups == 1 else 1.0),
        "c": sparse_array(channels, channels, 1, 1, density=0.1, seed=2),
    }
    nodes = [
        node("Conv", ["x", "a"], "p"),
        node("Relu", ["p"], "q"),
        node("Conv", ["q", "b"], "r", pads=[1, 1, 1, 1], group=groups),
        node("Relu", ["r"], "s"),
        node("Conv", ["s", "c"], "y"),
    ]
    shape = ("n", channels, 14, 14)
    return model(nodes, {"x": shape}, {"y": shape}, constants)


def test_conversions_beside_dense_convolutions_are_paid_for(tmp_path):
    graph = Graph(chain(64, 64))
    first, last = (match for match in match_all(graph) if isinstance(match, Candidate))
    assert beside_dense(graph, first.x, first.output, {first.index}) == (False, True)
    assert beside_dense(graph, last.x, last.output, {last.index}) == (True, False)
    whole = Graph(chain(64, 1))
    middle = match_all(whole)[1]
    assert beside_dense(whole, middle.x, middle.output, {0, 2, 4}) == (False, False)
    assert beside_dense(whole, middle.x, middle.output, {2, 4}) == (True, False)
    alone = times(first, 196, HERE).speedup
    one_side, both = (times(first, 196, HERE, converted=(True, side)).speedup for side in (False, True))
    assert both < one_side < alone


def test_a_sparse_node_between_dense_convolutions_must_gain_more(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "selected_kernel", lambda: "avx512")
    gains = {}
    for groups in (1, 256):
        onnx.save(chain(256, groups), tmp_path / "a.onnx")
        reason = lower(tmp_path / "a.onnx", tmp_path / "b.onnx", threads=1).layers[0].reason
        gains[groups] = float(reason.removeprefix("estimated ").partition("×")[0])
        assert ("conversions beside dense convolutions" in reason) == (groups != 1)
    assert gains[256] < gains[1]
