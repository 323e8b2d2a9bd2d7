"""Measured decisions: node by node first, then by the whole file."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from sparsify.lowering import lower, tune
from tests.lowering.graphs import model, node, operators, sparse_array

LAYERS = 6


@pytest.fixture
def source(tmp_path):
    """Six layers: 0–3 of one shape, 4 and 5 of another."""
    nodes, constants = [], {}
    for i in range(LAYERS):
        constants[f"w{i}"] = sparse_array(32, 32 if i < LAYERS - 2 else 48, seed=i)
        nodes.append(node("MatMul", ["x", f"w{i}"], f"h{i}"))
        nodes.append(node("ReduceSum", [f"h{i}"], f"y{i}", keepdims=0))
    built = model(nodes, {"x": ("n", 32)}, {f"y{i}": () for i in range(LAYERS)}, constants)
    onnx.save(built, tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


def clock(monkeypatch, nodes, files):
    """Replaces the stop-watch: the given (dense, sparse) seconds for nodes, then for whole files."""
    asked = []
    node_times, file_times = iter(nodes), iter(files)

    def interleave(calls, *, seconds, **_):
        for call in calls:
            call()
        asked.append(seconds)
        times = next(node_times if seconds == tune.NODE_SECONDS else file_times)
        return [SimpleNamespace(median=value) for value in times]

    monkeypatch.setattr(tune, "interleave", interleave)
    return asked


def test_each_kind_of_node_is_measured_once_and_the_faster_side_wins(source, tmp_path, monkeypatch):
    clock(monkeypatch, nodes=[(1.0, 0.5)] * 4 + [(1.0, 2.0)] * 2, files=[(1.0, 0.9)])
    monkeypatch.setattr(tune, "_signature", lambda candidate: (candidate.index,))
    report = lower(source, tmp_path / "out.onnx", tune=True)
    assert [layer.decision for layer in report.layers] == ["sparse"] * 4 + ["dense"] * 2
    assert "measured: 500000 µs sparse, 1000000 µs dense on [1, 32]" in report.layers[0].reason
    assert "whole file" in report.layers[0].reason
    assert operators(onnx.load(tmp_path / "out.onnx")).count("SparseLinear") == 4


def test_nodes_of_one_kind_share_a_measurement(source, tmp_path, monkeypatch):
    asked = clock(monkeypatch, nodes=[(1.0, 0.5)] * LAYERS, files=[(1.0, 0.9)])
    monkeypatch.setattr(tune, "_signature", lambda candidate: candidate.weight.shape)
    lower(source, tmp_path / "out.onnx", tune=True)
    assert asked.count(tune.NODE_SECONDS) == 2


def test_nodes_that_gain_least_are_taken_back_until_the_file_is_not_slower(source, tmp_path, monkeypatch):
    gains = [(1.0, 1.0 - 0.1 * (i + 1)) for i in range(LAYERS)]
    asked = clock(monkeypatch, nodes=gains, files=[(1.0, 1.2), (1.0, 1.1), (1.0, 0.95)])
    monkeypatch.setattr(tune, "_signature", lambda candidate: (candidate.index,))
    report = lower(source, tmp_path / "out.onnx", tune=True)
    decisions = [layer.decision for layer in report.layers]
    assert asked.count(tune.FILE_SECONDS) == 3
    assert decisions == ["dense"] * 3 + ["sparse"] * 3
    assert "taken back" in report.layers[0].reason


def test_file_that_is_never_faster_stays_dense(source, tmp_path, monkeypatch):
    clock(monkeypatch, nodes=[(1.0, 0.5)] * LAYERS, files=[(1.0, 1.2)] * LAYERS)
    monkeypatch.setattr(tune, "_signature", lambda candidate: (candidate.index,))
    report = lower(source, tmp_path / "out.onnx", tune=True)
    assert (report.nodes.sparse, report.nodes.dense) == (0, LAYERS)
    assert not {item.domain for item in onnx.load(tmp_path / "out.onnx").graph.node} - {""}


def test_real_measurements_of_a_convolution_with_everything_fused(tmp_path):
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
    report = lower(tmp_path / "source.onnx", tmp_path / "out.onnx", tune=True)
    assert "µs sparse" in report.layers[0].reason
    assert report.layers[0].decision in ("sparse", "dense")
