"""What a profile says of each node, from events that are made up and from a model that runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from sparsify.errors import UserError
from sparsify.runtime import bench, layouts, model_bench, roofline
from sparsify.runtime.node_profile import annotate, product_of, sparse_weights
from sparsify.runtime.profile_plot import by_kind, save_profile_plot
from sparsify.runtime.roofline import Roofline, measure_roofline
from tests.runtime.graphs import masked, model, sparse_mlp, sparse_node

CEILING = Roofline(gflops=100.0, gbytes=10.0, threads=1, how="made up")


def row(op, inputs, outputs, us=10.0, node="n"):
    return {
        "node": node,
        "op": op,
        "calls": 1,
        "us": us,
        "share": 1.0,
        "inputs": inputs,
        "outputs": outputs,
    }


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "weight", "columns", "flops", "decision"),
    [
        ("Gemm", [[5, 30]], [[5, 20]], (20, 30), 5, 2 * 5 * 30 * 20, "dense"),
        ("MatMul", [[2, 7, 30], [30, 20]], [[2, 7, 20]], (20, 30), 14, 2 * 14 * 30 * 20, "dense"),
        ("MatMul", [[2, 4, 9, 8], [2, 4, 8, 9]], [[2, 4, 9, 9]], (9, 8), 72, 2 * 2 * 4 * 9 * 9 * 8, None),
        (
            "Conv",
            [[2, 3, 8, 8], [6, 3, 3, 3], [6]],
            [[2, 6, 4, 4]],
            (6, 3, 3, 3),
            32,
            2 * 192 * 27,
            "dense",
        ),
        (
            "Conv",
            [[1, 8, 6, 6], [8, 1, 3, 3]],
            [[1, 8, 6, 6]],
            (8, 1, 3, 3),
            36,
            2 * 8 * 36 * 9,
            "dense",
        ),
    ],
)
def test_work_of_dense_nodes_follows_from_their_shapes(op, inputs, outputs, weight, columns, flops, decision):
    found = product_of(row(op, inputs, outputs), {})
    assert found is not None
    assert (found.weight, found.columns, found.flops, found.decision) == (weight, columns, flops, decision)


def test_nodes_that_multiply_nothing_have_no_work():
    assert product_of(row("Relu", [[2, 3]], [[2, 3]]), {}) is None
    assert product_of(row("Conv", [[1, 3, 8, 8]], [[1, 6, 8, 8]]), {}) is None
    assert product_of(row("Gemm", [], []), {}) is None


def test_work_of_sparse_nodes_is_that_of_their_non_zeros():
    weight = masked((12, 30), 0.3)
    conv = masked((6, 5, 3, 3), 0.4)
    packed = {
        "linear": layouts.pack_linear(weight, layout="blocks-4"),
        "conv": layouts.pack_conv(conv, pads=(1, 1, 1, 1)),
    }
    constants = {
        f"{name}.{i}": tensor for name, form in packed.items() for i, tensor in enumerate(form.tensors)
    }
    nodes = [sparse_node(form, name=name, x=name, y=f"{name}_y") for name, form in packed.items()]
    built = model(
        nodes, constants, {"linear": ["n", 30], "conv": ["n", 5, 8, 8]}, outputs=("linear_y", "conv_y")
    )
    weights = sparse_weights(built)
    assert weights["linear"].layout == "blocks-4"
    assert weights["linear"].nbytes == packed["linear"].nbytes
    linear = product_of(row("SparseLinear", [[7, 30]], [[7, 12]], node="linear"), weights)
    assert linear.flops == 2 * np.count_nonzero(weight) * 7
    assert linear.nbytes == 4 * 7 * (30 + 12) + packed["linear"].nbytes
    found = product_of(row("SparseConv", [[2, 5, 8, 8]], [[2, 6, 8, 8]], node="conv"), weights)
    assert (found.weight, found.columns, found.decision) == ((6, 5, 3, 3), 128, "csr")
    assert found.flops == 2 * np.count_nonzero(conv) * 128


def test_shares_of_the_roofline_and_the_baselines_time():
    compute = row("Gemm", [[1000, 100]], [[1000, 100]], us=400.0)
    memory = row("Gemm", [[1, 1000]], [[1, 1000]], us=800.0)
    dense = annotate([compute, memory, row("Relu", [[1]], [[1]])], {}, CEILING)
    assert [entry["bound"] for entry in dense] == ["compute", "memory", None]
    assert dense[0]["gflops"] == pytest.approx(50)
    assert dense[0]["roofline"] == pytest.approx(0.5)
    assert dense[1]["roofline"] == pytest.approx(4 * (1e6 + 2000) / 10e9 / 800e-6)
    again = annotate([compute, row("Gemm", [[3, 100]], [[3, 100]])], {}, CEILING, [*dense, dense[0]])
    assert [entry["dense_us"] for entry in again] == [400, None]


def test_ceilings_are_measured(monkeypatch):
    monkeypatch.setattr(roofline, "_REPEATS", 1)
    found = measure_roofline(2, 1)
    assert min(found.gflops, found.gbytes) > 0
    assert (found.threads, "4 MB" in found.how) == (2, True)
    monkeypatch.setattr(roofline, "_read_rate", lambda threads, size: size)
    assert measure_roofline(1, 1 << 40).gbytes == 64 << 20


def test_a_model_and_its_baseline_are_profiled_together(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(model_bench, "measure_roofline", lambda threads, size: CEILING)
    path = sparse_mlp(tmp_path / "mlp.onnx")
    report = bench(path, batches=(40,), duration=0.03, warmup=1, profile=True)
    json.dumps(report)
    rows = {entry["node"]: entry for entry in report["profile"]}
    assert rows["first"]["decision"] == "csr"
    assert (rows["first"]["shape"], rows["first"]["columns"]) == ([40, 24], 40)
    assert rows["first"]["dense_us"] > 0
    assert rows["first"]["gflops"] > 0
    assert report["roofline"] == CEILING.to_dict()
    assert sum(entry["decision"] == "dense" for entry in report["baseline_profile"]) == 2
    save_profile_plot(report, tmp_path / "plot.svg")
    assert "linear" in (tmp_path / "plot.svg").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"plot\.xyz"):
        save_profile_plot(report, tmp_path / "plot.xyz")
    with pytest.raises(UserError, match="profile=True"):
        save_profile_plot({}, tmp_path / "plot.png")


def test_a_model_without_a_baseline_is_profiled_alone(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(model_bench, "measure_roofline", lambda threads, size: CEILING)
    path = tmp_path / "dense.onnx"
    onnx.save(model([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ["n", 4]}), path)
    report = bench(path, duration=0.03, warmup=1, profile=True)
    assert "baseline_profile" not in report
    assert report["profile"][0]["decision"] is None


def test_kinds_are_sums_over_equal_nodes():
    rows = annotate(
        [row("Gemm", [[1, 4]], [[1, 3]]), row("MatMul", [[1, 4]], [[1, 3]]), row("Relu", [[1]], [[1]])],
        {},
        CEILING,
    )
    assert by_kind(rows) == {"linear 3×4": 20, "Relu": 10}
