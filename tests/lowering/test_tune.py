"""Measured decisions: node by node first, then by the whole file. The stop-watch is always a made-up one."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from sparsify.errors import UserError
from sparsify.lowering import cost, lower, node_timing, tune
from tests.lowering.graphs import model, node, operators, sparse_array

LAYERS = 6
WON, STAYS = (1.0, 0.9), (1.0, 0.9, 0.89)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Six layers of one shape, each of another density, so that each is a kind of its own."""
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))
    nodes, constants = [], {}
    for i in range(LAYERS):
        constants[f"w{i}"] = sparse_array(32, 32, seed=i, density=0.12 + 0.04 * i)
        nodes.append(node("MatMul", ["x", f"w{i}"], f"h{i}"))
        nodes.append(node("ReduceSum", [f"h{i}"], f"y{i}", keepdims=0))
    built = model(nodes, {"x": ("n", 32)}, {f"y{i}": () for i in range(LAYERS)}, constants)
    onnx.save(built, tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


def clock(monkeypatch, nodes, files):
    """Replaces the stop-watch: seconds of dense and layouts for nodes, of source and attempts for files."""
    asked = SimpleNamespace(nodes=0, files=0)
    node_times, file_times = iter(nodes), iter(files)

    def watch(calls, *, seconds, **_):
        for call in calls:
            call()
        whole = seconds == tune.FILE_SECONDS
        asked.files += whole
        asked.nodes += not whole
        times = next(file_times if whole else node_times)
        assert len(times) == len(calls)
        return [SimpleNamespace(median=value) for value in times]

    monkeypatch.setattr(tune, "interleave", watch)
    monkeypatch.setattr(node_timing, "interleave", watch)
    return asked


def test_the_faster_side_wins_and_the_report_has_the_times(source, tmp_path, monkeypatch):
    clock(monkeypatch, nodes=[(1.0, 0.5)] * 4 + [(1.0, 2.0)] * 2, files=[WON, STAYS])
    report = lower(source, tmp_path / "out.onnx", tune=True, batches=(3,))
    assert [layer.decision for layer in report.layers] == ["sparse"] * 4 + ["dense"] * 2
    assert "csr 500000 µs, dense 1000000 µs on [3, 32]" in report.layers[0].reason
    assert "whole file: 900.00 ms, source 1000.00 ms" in report.layers[0].reason
    assert operators(onnx.load(tmp_path / "out.onnx")).count("SparseLinear") == 4


def test_a_node_must_not_be_slower_at_any_size(source, tmp_path, monkeypatch):
    slow_once = [(1.0, 0.2), (1.0, 1.05)]
    asked = clock(monkeypatch, nodes=slow_once + [(1.0, 0.9)] * 10, files=[WON, WON, STAYS, STAYS])
    report = lower(source, tmp_path / "out.onnx", tune=True, batches=(1, 16))
    assert asked.nodes == 2 * LAYERS
    assert [layer.decision for layer in report.layers] == ["dense"] + ["sparse"] * 5
    assert "on [1, 32]" in report.layers[0].reason
    assert "on [16, 32]" in report.layers[0].reason


@pytest.mark.parametrize(("share", "decision"), [(0.98, "dense"), (0.96, "sparse")])
def test_what_is_within_noise_stays_dense(source, tmp_path, monkeypatch, share, decision):
    clock(monkeypatch, nodes=[(1.0, share)] * LAYERS, files=[WON, STAYS])
    report = lower(source, tmp_path / "out.onnx", tune=True, batches=(1,))
    assert {layer.decision for layer in report.layers} == {decision}


def test_the_fastest_of_the_layouts_that_fit_is_taken(tmp_path, monkeypatch):
    weight = np.kron(sparse_array(64, 16, density=0.2), np.ones((1, 4), np.float32))
    onnx.save(
        model([node("MatMul", ["x", "w"], "y")], {"x": (4, 64)}, {"y": (4, 64)}, {"w": weight}),
        tmp_path / "source.onnx",
    )
    clock(monkeypatch, nodes=[(1.0, 0.5, 0.3, 0.4)], files=[WON])
    report = lower(tmp_path / "source.onnx", tmp_path / "out.onnx", tune=True, cache=False)
    assert report.layers[0].layout == "blocks-2"
    assert "csr 500000 µs, blocks-2 300000 µs, blocks-4 400000 µs" in report.layers[0].reason


def test_nodes_of_one_kind_share_a_measurement_and_a_second_run_needs_none(source, tmp_path, monkeypatch):
    built = onnx.load(source)
    for tensor in built.graph.initializer:
        if tensor.name != "w0":
            tensor.raw_data = built.graph.initializer[0].raw_data
    onnx.save(built, source)
    asked = clock(monkeypatch, nodes=[(1.0, 0.5)], files=[WON, STAYS] * 2)
    first = lower(source, tmp_path / "out.onnx", tune=True, batches=(1,))
    assert (asked.nodes, first.nodes.sparse) == (1, LAYERS)
    again = lower(source, tmp_path / "out.onnx", tune=True, batches=(1,))
    assert (asked.nodes, again.layers[0].layout) == (1, first.layers[0].layout)


def test_weights_of_another_number_type_are_measured_by_themselves(source, tmp_path, monkeypatch):
    asked = clock(monkeypatch, nodes=[(1.0, 2.0)] * 2 * LAYERS, files=[])
    for count, dtype in enumerate(("float32", "bfloat16", "bfloat16"), start=1):
        lower(source, tmp_path / "out.onnx", tune=True, batches=(1,), weight_dtype=dtype)
        assert asked.nodes == min(count, 2) * LAYERS


def test_without_the_cache_everything_is_measured_again_and_nothing_written(source, tmp_path, monkeypatch):
    asked = clock(monkeypatch, nodes=[(1.0, 2.0)] * 2 * LAYERS, files=[])
    for _ in range(2):
        lower(source, tmp_path / "out.onnx", tune=True, batches=(1,), cache=False)
    assert asked.nodes == 2 * LAYERS
    assert not (tmp_path / "cache").exists()


def test_nodes_that_gain_least_are_taken_back_until_the_file_is_not_slower(source, tmp_path, monkeypatch):
    gains = [(1.0, 1.0 - 0.1 * (i + 1)) for i in range(LAYERS)]
    asked = clock(monkeypatch, nodes=gains, files=[(1.0, 1.2), (1.0, 1.1), (1.0, 0.95), STAYS])
    report = lower(source, tmp_path / "out.onnx", tune=True, batches=(1,))
    assert asked.files == 4
    assert [layer.decision for layer in report.layers] == ["dense"] * 3 + ["sparse"] * 3
    assert "taken back" in report.layers[0].reason


def test_taking_back_goes_on_while_it_makes_the_file_faster(source, tmp_path, monkeypatch):
    gains = [(1.0, 1.0 - 0.1 * (i + 1)) for i in range(LAYERS)]
    clock(monkeypatch, nodes=gains, files=[(1.0, 0.99), (1.0, 0.99, 0.8), (1.0, 0.8, 0.79)])
    report = lower(source, tmp_path / "out.onnx", tune=True, batches=(1,))
    assert [layer.decision for layer in report.layers] == ["dense"] * 2 + ["sparse"] * 4
    assert "800.00 ms" in report.layers[-1].reason


def test_a_file_must_not_be_slower_at_any_size(source, tmp_path, monkeypatch):
    files = [(1.0, 0.5), (1.0, 1.01)] * 2 + [WON] * 2 + [STAYS] * 2
    clock(monkeypatch, nodes=[(1.0, 0.5)] * 2 * LAYERS, files=files)
    report = lower(source, tmp_path / "out.onnx", tune=True, batches=(1, 16))
    assert report.nodes.sparse == LAYERS - 3


def test_file_that_is_never_faster_comes_out_as_it_was(source, tmp_path, monkeypatch):
    clock(monkeypatch, nodes=[(1.0, 0.5)] * LAYERS, files=itertools.repeat((1.0, 1.2)))
    report = lower(source, tmp_path / "out.onnx", tune=True, batches=(1,))
    assert (report.nodes.sparse, report.nodes.dense) == (0, LAYERS)
    assert all("taken back" in layer.reason for layer in report.layers)
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(source)


def test_progress_reaches_its_end(source, tmp_path, monkeypatch):
    clock(monkeypatch, nodes=[(1.0, 0.5)] * LAYERS, files=[WON, STAYS])
    told = []
    lower(source, tmp_path / "out.onnx", tune=True, batches=(1,), progress=lambda *event: told.append(event))
    assert ("measuring nodes", LAYERS, LAYERS) in told
    assert {what for what, _, _ in told} == {"measuring nodes", "measuring the whole file"}


def test_sizes_that_the_file_does_not_have_are_errors(source, tmp_path):
    out = tmp_path / "out.onnx"
    with pytest.raises(UserError, match="no input has a dimension 'seq'"):
        lower(source, out, sizes={"seq": 3})
    with pytest.raises(UserError, match="batch size must be at least 1"):
        lower(source, out, tune=True, batches=(0,))
    with pytest.raises(UserError, match="nothing to tune"):
        lower(source, out, tune=True, layout="csr")
    fixed = model(
        [node("MatMul", ["x", "w"], "y")], {"x": (4, 32)}, {"y": (4, 32)}, {"w": sparse_array(32, 32)}
    )
    onnx.save(fixed, source)
    with pytest.raises(UserError, match="fixed first dimension of 4"):
        lower(source, out, tune=True, batches=(8,))
    assert not out.exists()


def test_real_measurements_of_a_convolution_with_everything_fused(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "FILE_SECONDS", 0.05)
    monkeypatch.setattr(node_timing, "NODE_SECONDS", 0.03)
    nodes = [
        node("Conv", ["x", "w", "b"], "h", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Add", ["h", "r"], "s"),
        node("Relu", ["s"], "y"),
    ]
    constants = {"w": sparse_array(16, 8, 3, 3, density=0.1), "b": np.ones(16, np.float32)}
    built = model(
        nodes,
        {"x": ("n", 8, 16, 16), "r": ("n", 16, 8, 8)},
        {"y": ("n", 16, 8, 8)},
        constants,
    )
    onnx.save(built, tmp_path / "source.onnx")
    report = lower(tmp_path / "source.onnx", tmp_path / "out.onnx", tune=True, cache=False, batches=(2,))
    assert "µs on [2, 8, 16, 16]" in report.layers[0].reason
    assert report.layers[0].decision in ("sparse", "dense")


def forms():
    """Operators that see other values than the file has: float16, transposed, left, one-dimensional."""
    w = sparse_array(32, 32)
    kinds = dict.fromkeys(("x", "y"), onnx.TensorProto.FLOAT16)
    half = node("MatMul", ["x", "w"], "y")
    yield model([half], {"x": (4, 32)}, {"y": (4, 32)}, {"w": w.astype(np.float16)}, types=kinds)
    turned = node("Gemm", ["x", "w", "c"], "y", transA=1, alpha=0.5)
    yield model([turned], {"x": (32, 4), "c": (4, 32)}, {"y": (4, 32)}, {"w": w})
    yield model([node("MatMul", ["w", "x"], "y")], {"x": (32, 5)}, {"y": (32, 5)}, {"w": w})
    flat = node("Conv", ["x", "v"], "y", pads=[1, 1])
    yield model([flat], {"x": (2, 8, 9)}, {"y": (2, 16, 9)}, {"v": sparse_array(16, 8, 3)})


@pytest.mark.parametrize("index", range(4))
def test_every_form_that_can_be_lowered_can_be_measured(tmp_path, monkeypatch, index):
    clock(monkeypatch, nodes=[(1.0, 0.5)], files=[WON])
    onnx.save(list(forms())[index], tmp_path / "source.onnx")
    report = lower(tmp_path / "source.onnx", tmp_path / "out.onnx", tune=True, cache=False)
    assert report.layers[0].layout == "csr"
    assert report.layers[0].reason.startswith("measured: csr 500000 µs, dense 1000000 µs")


def test_a_node_whose_shape_is_unknown_is_estimated_and_the_file_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "selected_kernel", lambda: "avx512")
    nodes = [node("NonZero", ["m"], "i"), node("Transpose", ["i"], "t"), node("GatherND", ["x", "t"], "g")]
    nodes.append(node("MatMul", ["g", "w"], "y"))
    built = model(
        nodes, {"m": ("n",), "x": ("n", 512)}, {"y": (None, 512)}, {"w": sparse_array(512, 512, density=0.05)}
    )
    onnx.save(built, tmp_path / "source.onnx")
    clock(monkeypatch, nodes=[], files=[WON])
    report = lower(tmp_path / "source.onnx", tmp_path / "out.onnx", tune=True, cache=False, batches=(4,))
    assert "estimated" in report.layers[0].reason
    assert "whole file: 900.00 ms" in report.layers[0].reason


def test_a_file_that_takes_one_batch_only_is_measured_on_that(tmp_path, monkeypatch):
    """The batch is free in the inputs' shapes, but a Reshape inside fixes it."""
    nodes = [node("Reshape", ["x", "s"], "r"), node("MatMul", ["r", "w"], "y")]
    constants = {"s": np.array([2, 32], np.int64), "w": sparse_array(32, 32)}
    onnx.save(model(nodes, {"x": ("n", 32)}, {"y": (2, 32)}, constants), tmp_path / "source.onnx")
    clock(monkeypatch, nodes=[(1.0, 0.5)], files=[WON])
    report = lower(tmp_path / "source.onnx", tmp_path / "out.onnx", tune=True, cache=False)
    assert "on [2, 32]" in report.layers[0].reason
    with pytest.raises(UserError, match="no random inputs"):
        lower(tmp_path / "source.onnx", tmp_path / "out.onnx", tune=True, cache=False, batches=(3,))
