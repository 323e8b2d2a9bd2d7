"""The GPU's cost model: gathers at few rows, wide blocks at many, and always said to be unmeasured."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest

from sparsify.errors import UserError
from sparsify.lowering import lower
from sparsify.lowering.gpu_cost import NOTE, decide_gpu, gpu_speedup
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from sparsify.runtime import layouts
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
    gains = [gpu_speedup(match, size, layout=layout, stored=count) for count in (0, 10_000, 50_000, 262_144)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > gains[-1]


def test_wide_blocks_gain_more_than_narrow_ones_at_every_size():
    _, match = linear(2048, 2048, ("n",), 0.1)
    for size in (1, 8, 128, 4096):
        gains = [gpu_speedup(match, size, layout=layout, stored=400_000) for layout in layouts.LAYOUTS]
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
    with pytest.raises(UserError, match="measures on this machine's CPU"):
        lower(source, tmp_path / "out.onnx", target="cuda", tune=True)
    assert not (tmp_path / "out.onnx").exists()


def test_a_layout_that_is_asked_for_holds_for_the_gpu_too(tmp_path):
    report = lower(file_of(tmp_path, 0.5, 1), tmp_path / "out.onnx", target="cuda", layout="csr")
    assert report.layers[0].layout == "csr"
    json.dumps(report.to_dict())
