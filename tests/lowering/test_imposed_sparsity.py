"""What a dense model would gain: nothing of it changes, and the answer says what was done to it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from sparsify.errors import UserError
from sparsify.lowering import cost, tune, what_if
from sparsify.runtime import Session
from tests.lowering.graphs import model, node, operators, sparse_array


@pytest.fixture
def source(tmp_path):
    """Three dense layers: one large, one small, one that no block of four outputs fits."""
    constants = {
        "w": sparse_array(256, 512, density=1.0, seed=1),
        "v": sparse_array(512, 8, density=1.0, seed=2),
        "u": sparse_array(8, 7, density=1.0, seed=3),
    }
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "v"], "g"),
        node("MatMul", ["g", "u"], "y"),
    ]
    onnx.save(model(nodes, {"x": ("n", 256)}, {"y": ("n", 7)}, constants), tmp_path / "dense.onnx")
    return tmp_path / "dense.onnx"


@pytest.fixture(autouse=True)
def stopwatch(monkeypatch):
    """Whole files take 2 s dense and 0.5 s sparse; estimates are for AVX-512."""

    def watch(calls, **_):
        for call in calls:
            call()
        return [SimpleNamespace(median=value) for value in (2.0, 0.5)]

    monkeypatch.setattr(tune, "interleave", watch)
    monkeypatch.setattr(cost, "selected_kernel", lambda: "avx512")


def test_the_gain_is_told_and_no_file_written(source, tmp_path):
    before = source.read_bytes()
    report = what_if(source, 0.9, batches=(1, 32), layout="csr")
    found = report.to_dict()["what_if"]
    assert [row["inputs"] for row in found["results"]] == [{"x": [1, 256]}, {"x": [32, 256]}]
    assert {(row["dense_ms"], row["lowered_ms"], row["speedup"]) for row in found["results"]} == {
        (2000, 500, 4)
    }
    assert (found["sparsity"], found["pattern"], found["speedup"]) == (0.9, "unstructured", 4)
    assert "accuracy was not looked at" in found["note"]
    assert [layer.density for layer in report.layers] == pytest.approx([0.1, 0.1, 0.1], abs=0.02)
    assert all("90% of its weights cut" in layer.reason for layer in report.layers)
    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["dense.onnx"]


def test_layers_that_stay_dense_keep_their_weights_in_the_file(source, tmp_path):
    target = tmp_path / "cut.onnx"
    report = what_if(source, 0.9, target, batches=(32,), threads=1)
    assert [layer.decision for layer in report.layers] == ["sparse", "dense", "dense"]
    assert "cut" not in report.layers[1].reason
    built = onnx.load(target)
    assert operators(built) == ["SparseLinear", "MatMul", "MatMul"]
    kept = {tensor.name: tensor for tensor in built.graph.initializer}
    assert np.count_nonzero(onnx.numpy_helper.to_array(kept["v"])) == 512 * 8
    assert report.bytes == target.stat().st_size < report.what_if.bytes_dense
    x = {"x": sparse_array(4, 256, density=1.0)}
    assert not np.allclose(Session(target).run(x)["y"], Session(source).run(x)["y"])
    assert report.max_abs_error < 1e-3


def test_a_pattern_is_imposed_where_it_fits(source):
    report = what_if(source, 0.75, pattern="4x1", layout="blocks-4")
    assert [layer.layout for layer in report.layers] == ["blocks-4", "blocks-4", None]
    assert report.layers[0].density == 0.25
    assert "cannot have the pattern 4x1: 7 outputs are no multiple of 4" in report.layers[2].reason
    assert what_if(source, 0.1, pattern="2:4", layout="csr").what_if.sparsity == 0.5


def test_where_nothing_would_be_faster_nothing_is_timed(source):
    report = what_if(source, 0.01, threads=1)
    assert report.nodes.sparse == 0
    assert report.what_if.results == ()
    assert report.what_if.speedup == 1.0


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, 90.0])
def test_a_sparsity_outside_its_range_is_an_error(source, sparsity):
    with pytest.raises(UserError, match="between 0 and 1"):
        what_if(source, sparsity)
    with pytest.raises(UserError, match="unknown pattern"):
        what_if(source, 0.5, pattern="4y1")
