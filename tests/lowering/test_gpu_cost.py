"""The GPU's cost model: gathers at few rows, wide blocks at many, and always said to be unmeasured."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest

from sparsify.errors import UserError
from sparsify.lowering import lower, node_timing, tune, what_if
from sparsify.lowering.cost import Machine
from sparsify.lowering.gpu_cost import NOTE, decide_gpu, gpu_times
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from sparsify.lowering.tuning_cache import environment_of
from sparsify.runtime import bench_provider, layouts
from sparsify.runtime.cuda import PROVIDER
from tests.lowering.graphs import model, node, sparse_array


def linear(out, k, shape, density, rows=1):
    weight = sparse_array(k, out, density=density)
    built = model([node("MatMul", ["x", "w"], "y")], {"x": (*shape, k)}, {"y": (*shape, out)}, {"w": weight})
    graph = Graph(built)
    (match,) = match_all(graph)
    kept = np.repeat(match.weight[::rows] != 0, rows, axis=0)[:out]
    return graph, dataclasses.replace(match, weight=np.where(kept, np.float32(1), np.float32(0)))


@pytest.mark.parametrize(
    ("made", "layout"),
    [
        (linear(2048, 2048, (1,), 0.1), "csr"),
        (linear(2048, 2048, (1,), 0.1, rows=4), "blocks-4"),
        (linear(2048, 2048, (4096,), 0.1, rows=16), "blocks-16"),
        (linear(2048, 2048, (4096,), 0.1), None),
        (linear(2048, 2048, (4096,), 0.5, rows=16), None),
        (linear(64, 64, (1,), 0.1), None),
        (linear(2048, 2048, (1,), 1.0), None),
    ],
)
def test_clear_cases(made, layout):
    graph, match = made
    decision = decide_gpu(match, graph)
    assert decision.layout == layout
    assert NOTE in decision.reason or "next to no zeros" in decision.reason


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("size", [1, 8, 9, 64, 4096])
def test_fewer_weights_never_cost_more(layout, size):
    _, match = linear(512, 512, ("n",), 0.5)
    gains = [
        gpu_times(match, size, layout=layout, stored=count).speedup for count in (0, 10_000, 50_000, 262_144)
    ]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > gains[-1]


def test_wide_blocks_gain_more_than_narrow_ones_at_every_size():
    _, match = linear(2048, 2048, ("n",), 0.1)
    for size in (1, 8, 128, 4096):
        gains = [gpu_times(match, size, layout=layout, stored=400_000).speedup for layout in layouts.LAYOUTS]
        assert gains == sorted(gains)


def file_of(folder, density, rows):
    _, match = linear(1024, 1024, ("n",), density, rows)
    built = model(
        [node("MatMul", ["x", "w"], "y")],
        {"x": ("n", 1024)},
        {"y": ("n", 1024)},
        {"w": np.ascontiguousarray(match.weight.T)},
    )
    onnx.save(built, folder / "in.onnx")
    return folder / "in.onnx"


def test_the_target_and_the_batch_decide(tmp_path):
    source = file_of(tmp_path, 0.05, 16)
    few = lower(source, tmp_path / "few.onnx", target="cuda", batches=(1,)).layers[0]
    many = lower(source, tmp_path / "many.onnx", target="cuda", batches=(2048,)).layers[0]
    assert few.layout is not None
    assert many.layout == "blocks-16"
    assert NOTE in few.reason
    assert "2048 rows" in many.reason
    unstructured = lower(file_of(tmp_path, 0.2, 1), tmp_path / "csr.onnx", target="cuda", batches=(2048,))
    assert unstructured.layers[0].decision == "dense"


def test_what_cannot_be_decided_is_refused(tmp_path):
    source = file_of(tmp_path, 0.1, 1)
    with pytest.raises(UserError, match="unknown target 'rocm'; choose one of cpu, cuda"):
        lower(source, tmp_path / "out.onnx", target="rocm")
    if PROVIDER not in onnxruntime.get_available_providers():
        with pytest.raises(
            UserError, match="has no CUDAExecutionProvider: install onnxruntime-gpu, or leave"
        ):
            lower(source, tmp_path / "out.onnx", target="cuda", tune=True)
    assert not (tmp_path / "out.onnx").exists()


def test_what_if_estimates_for_the_gpu_and_times_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "interleave", lambda *_, **__: pytest.fail("something was timed"))
    source = file_of(tmp_path, 1.0, 1)
    report = what_if(source, 0.95, target="cuda", pattern="16x1", batches=(2048, 1)).to_dict()
    found = report["what_if"]
    assert found["estimated"]
    assert "nothing was timed" in found["note"]
    assert [layer["layout"] for layer in report["layers"]] == ["blocks-16"]
    (many, one) = found["results"]
    _, match = linear(1024, 1024, ("n",), 1.0)
    stored = round(0.05 * 1024 * 1024 / 16) * 16
    for times, size in ((many, 2048), (one, 1)):
        assert times["inputs"] == {"x": [size, 1024]}
        dense, sparse = gpu_times(match, size, layout="blocks-16", stored=stored)
        assert times["dense_ms"] == pytest.approx(dense / 1e6)
        assert times["lowered_ms"] == pytest.approx(sparse / 1e6, rel=0.02)
    assert found["speedup"] == pytest.approx(min(many["speedup"], one["speedup"]))
    assert found["speedup"] > 1


def test_what_if_leaves_dense_what_would_not_gain(tmp_path):
    report = what_if(file_of(tmp_path, 1.0, 1), 0.5, target="cuda", batches=(2048,))
    assert report.what_if.results == ()
    assert report.nodes.sparse == 0


def test_tuning_for_cuda_runs_files_and_nodes_on_its_provider(tmp_path, monkeypatch):
    """The tuner over a provider that stands in for CUDA: the CPU's, under its name."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setitem(bench_provider.PROVIDERS, "cuda", ("CPUExecutionProvider",))
    called = []

    def call_of(session, feeds, provider):
        called.append(provider)
        return lambda: session.raw.run(None, feeds)

    for module in (tune, node_timing):
        monkeypatch.setattr(module, "call_of", call_of)
    monkeypatch.setattr(tune, "FILE_SECONDS", 0.02)
    monkeypatch.setattr(node_timing, "NODE_SECONDS", 0.01)
    source = file_of(tmp_path, 0.02, 16)
    report = lower(source, tmp_path / "out.onnx", target="cuda", tune=True, batches=(4,), cache=False)
    assert report.layers[0].reason.startswith(("measured: csr", "taken back"))
    assert len(called) >= 2
    assert set(called) == {"cuda"}


def test_times_on_a_gpu_are_kept_apart():
    here, there = environment_of(Machine("avx2", 1)), environment_of(Machine("avx2", 1, "cuda"))
    assert "gpu" not in here
    assert {"gpu", "dense", "sparse"} <= set(there)
    assert environment_of(Machine("avx2", 1)) == here


def test_a_layout_that_is_asked_for_holds_for_the_gpu_too(tmp_path):
    report = lower(file_of(tmp_path, 0.5, 1), tmp_path / "out.onnx", target="cuda", layout="csr")
    assert report.layers[0].layout == "csr"
    json.dumps(report.to_dict())
