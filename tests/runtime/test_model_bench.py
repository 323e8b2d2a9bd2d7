from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import UserError
from sparsify.runtime import bench, layouts
from sparsify.runtime.feeds import make_feeds
from sparsify.runtime.session import Session
from sparsify.runtime.zero_filled import sparse_nodes, zero_filled
from tests.runtime.graphs import masked, model, sparse_mlp, sparse_node, values

QUICK = {"duration": 0.03, "warmup": 1}


def test_a_model_of_the_same_shapes_is_compared_with_itself_in_standard_operators(tmp_path: Path):
    path = sparse_mlp(tmp_path / "mlp.onnx")
    report = bench(path, batches=(1, 5), threads=(1, 2), **QUICK)
    json.dumps(report)
    assert report["baseline"] == {"kind": "zero-filled", "file": None}
    assert 0 < report["max_abs_error"] < 1e-4
    settings = [(row["model"], row["batch"], row["threads"]) for row in report["results"]]
    assert sorted(settings) == [(m, b, t) for m in ("baseline", "model") for b in (1, 5) for t in (1, 2)]
    for row in report["results"]:
        assert set(row["latency_ms"]) == {"p50", "p90", "p95", "p99", "mean", "std"}
        assert row["throughput"] == pytest.approx(row["batch"] / row["latency_ms"]["p50"] * 1e3)
    medians = {(r["model"], r["batch"], r["threads"]): r["latency_ms"]["p50"] for r in report["results"]}
    rows = [row for row in report["results"] if row["model"] == "model"]
    for row in rows:
        key = (row["batch"], row["threads"])
        assert row["speedup"] == pytest.approx(medians["baseline", *key] / medians["model", *key])
    assert report["speedup"] == min(row["speedup"] for row in rows)
    assert {"cpu", "flags", "kernel", "onnxruntime"} <= set(report["environment"])


def test_a_wide_model_is_never_compared_with_its_own_zero_filled_self(tmp_path: Path):
    wide = sparse_mlp(tmp_path / "wide.onnx", metadata={"sparsify.family": "wide"})
    report = bench(wide, **QUICK)
    assert report["baseline"]["kind"] == "none"
    assert "wide" in report["baseline"]["reason"]
    assert report["speedup"] is None
    assert [row["model"] for row in report["results"]] == ["model"]
    masked_model = sparse_mlp(tmp_path / "masked.onnx", metadata={"sparsify.family": "masked"})
    assert bench(masked_model, **QUICK)["baseline"]["kind"] == "zero-filled"


def test_an_original_given_as_baseline_is_timed_but_not_subtracted(tmp_path: Path):
    wide = sparse_mlp(tmp_path / "wide.onnx", metadata={"sparsify.family": "wide"})
    dense = tmp_path / "dense.onnx"
    relu = model([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ["batch", 24]})
    onnx.save(relu, dense)
    report = bench(wide, baseline=dense, **QUICK)
    assert report["baseline"] == {"kind": "original", "file": str(dense)}
    assert report["max_abs_error"] is None
    assert report["speedup"] > 0


def test_a_baseline_of_the_same_family_is_subtracted(tmp_path: Path):
    path = sparse_mlp(tmp_path / "mlp.onnx")
    other = tmp_path / "other.onnx"
    wider = model([helper.make_node("Concat", ["x", "x"], ["y"], axis=1)], {}, {"x": ["batch", 24]})
    onnx.save(wider, other)
    with pytest.raises(UserError, match="output"):
        bench(path, baseline=other, **QUICK)
    assert bench(path, baseline=path, **QUICK)["max_abs_error"] == 0


def test_a_dense_model_alone_has_nothing_to_compare_with(tmp_path: Path):
    path = tmp_path / "dense.onnx"
    onnx.save(model([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": ["n", 4]}), path)
    assert bench(path, **QUICK)["baseline"]["kind"] == "none"


def test_profile_is_there_when_asked(tmp_path: Path):
    path = sparse_mlp(tmp_path / "mlp.onnx")
    rows = bench(path, profile=True, **QUICK)["profile"]
    assert {row["node"] for row in rows} >= {"first", "second"}
    assert all({"node", "op", "us", "share"} <= set(row) for row in rows)
    assert "profile" not in bench(path, **QUICK)


def test_what_cannot_be_timed_is_a_user_error(tmp_path: Path):
    with pytest.raises(UserError, match="no file"):
        bench(tmp_path / "missing.onnx")
    path = sparse_mlp(tmp_path / "mlp.onnx")
    with pytest.raises(UserError, match="at least 1"):
        bench(path, batches=(0,))
    with pytest.raises(UserError, match="no file"):
        bench(path, baseline=tmp_path / "missing.onnx")
    other = tmp_path / "other.onnx"
    onnx.save(model([helper.make_node("Relu", ["z"], ["y"])], {}, {"z": ["n", 4]}), other)
    with pytest.raises(UserError, match="no input 'x'"):
        bench(path, baseline=other, **QUICK)
    fixed = tmp_path / "fixed.onnx"
    onnx.save(model([helper.make_node("Relu", ["x"], ["y"])], {}, {"x": [2, 4]}), fixed)
    with pytest.raises(UserError, match="fixed first dimension of 2"):
        bench(fixed, batches=(3,), **QUICK)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "gelu_tanh"])
def test_the_zero_filled_twin_computes_the_same(activation: str):
    linear = layouts.pack_linear(masked((10, 6), 0.4))
    conv = layouts.pack_conv(masked((6, 3, 3, 3), 0.4), strides=(2, 1), pads=(1, 0, 1, 2), dilations=(1, 1))
    nodes = [
        sparse_node(conv, bias=True, residual=True, activation=activation, y="h", name="conv"),
        helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 3, 1]),
        sparse_node(linear, activation=activation, x="t", name="linear"),
    ]
    constants = {"bias": values((6,))}
    for name, packed in (("conv", conv), ("linear", linear)):
        constants |= {f"{name}.{i}": tensor for i, tensor in enumerate(packed.tensors)}
    sparse = model(nodes, constants, {"x": ["n", 3, 9, 8], "residual": ["n", 6, 5, 8]})
    twin = zero_filled(sparse)
    assert sparse_nodes(twin) == []
    assert len(sparse_nodes(sparse)) == 2
    feeds = {"x": values((2, 3, 9, 8)), "residual": values((2, 6, 5, 8), 7)}
    got, want = (Session(each.SerializeToString()).run(feeds)["y"] for each in (twin, sparse))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def _text_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "ids"], ["a"]),
        helper.make_node("Gather", ["places", "position_ids"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    integers = ("input_ids", "position_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "s"]) for name in integers]
    inputs.append(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "s", None]))
    constants = [
        numpy_helper.from_array(np.zeros((7, 2), np.float32), "table"),
        numpy_helper.from_array(np.zeros((200, 2), np.float32), "places"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return helper.make_model(helper.make_graph(nodes, "text", inputs, outputs, constants))


def test_made_up_inputs_are_valid_for_what_reads_them():
    feeds = make_feeds(_text_model(), 3, sizes={"s": 150})
    assert feeds["input_ids"].shape == (3, 150)
    assert set(np.unique(feeds["input_ids"])) == set(range(7))
    assert feeds["position_ids"][2].tolist() == list(range(150))
    assert feeds["attention_mask"].all()
    assert feeds["token_type_ids"].all()
    assert feeds["image"].shape == (3, 3, 150, 128)
    assert feeds["image"].dtype == np.float32
    assert make_feeds(_text_model(), 1)["input_ids"].shape == (1, 128)
