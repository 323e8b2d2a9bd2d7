"""Files: errors that say what to do, results that appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper

from sparsify.errors import ParityError, UserError
from sparsify.lowering import lower, model_file, pipeline, rewrite
from sparsify.lowering.model_file import read_model
from sparsify.runtime import Session
from tests.lowering.graphs import model, node, sparse_array

W = sparse_array(64, 128)


@pytest.fixture
def built() -> onnx.ModelProto:
    nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "y")]
    return model(nodes, {"x": ("n", 64)}, {"y": ("n", 128)}, {"w": W})


def test_result_is_valid_smaller_and_declares_the_domain(tmp_path, built):
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(built, source)
    report = lower(source, target, layout="csr")
    onnx.checker.check_model(str(target))
    result = onnx.load(target)
    assert {entry.domain: entry.version for entry in result.opset_import} == {"": 20, "ai.sparsify": 1}
    assert report.bytes == target.stat().st_size < source.stat().st_size
    assert report.max_abs_error < 1e-4
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


def test_shapes_of_sparse_results_are_written(tmp_path, built):
    built.graph.node.append(node("Neg", ["y"], "z"))
    built.graph.output[0].name = "z"
    onnx.save(built, tmp_path / "a.onnx")
    lower(tmp_path / "a.onnx", tmp_path / "b.onnx", layout="csr")
    infos = {value.name: value for value in onnx.load(tmp_path / "b.onnx").graph.value_info}
    assert [dim.dim_value or dim.dim_param for dim in infos["y"].type.tensor_type.shape.dim] == ["n", 128]


def test_source_and_destination_may_be_one_file(tmp_path, built):
    path = tmp_path / "model.onnx"
    onnx.save(built, path)
    x = np.ones((2, 64), np.float32)
    before = Session(path).run({"x": x})["y"]
    assert lower(path, path, layout="csr").nodes.sparse == 1
    np.testing.assert_allclose(Session(path).run({"x": x})["y"], before, rtol=1e-5, atol=1e-5)


def test_wrong_weight_fails_parity_and_leaves_the_destination(tmp_path, built, monkeypatch):
    source, target = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(built, source)
    target.write_text("kept")
    pack = rewrite.layouts.pack_linear

    def pack_wrong(weight, **options):
        changed = weight.copy()
        changed[tuple(np.argwhere(changed)[0])] *= 1.01
        return pack(changed, **options)

    monkeypatch.setattr(rewrite.layouts, "pack_linear", pack_wrong)
    monkeypatch.setattr(rewrite.layouts, "unpack", lambda packed: np.ascontiguousarray(W.T))
    with pytest.raises(ParityError, match="'y'"):
        lower(source, target, layout="csr")
    assert target.read_text() == "kept"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_packing_that_loses_a_weight_is_found_before_anything_is_written(tmp_path, built, monkeypatch):
    onnx.save(built, tmp_path / "a.onnx")
    monkeypatch.setattr(rewrite.layouts, "unpack", lambda packed: np.zeros((128, 64), np.float32))
    with pytest.raises(Exception, match="does not survive packing"):
        lower(tmp_path / "a.onnx", tmp_path / "b.onnx", layout="csr")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "holds no ONNX graph"),
        (b"<html>not found</html>" * 20, "damaged or not ONNX"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    ],
)
def test_files_that_are_not_onnx(tmp_path, content, message):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        lower(path, tmp_path / "out.onnx")


def test_truncated_file(tmp_path, built):
    path = tmp_path / "model.onnx"
    path.write_bytes(built.SerializeToString()[:-1000])
    with pytest.raises(UserError, match="damaged"):
        lower(path, tmp_path / "out.onnx")


def test_missing_external_data(tmp_path, built):
    path = tmp_path / "model.onnx"
    onnx.save(built, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(UserError, match=r"external data.*weights\.bin"):
        lower(path, tmp_path / "out.onnx")


def test_external_data_is_read_and_written_under_its_hash(tmp_path, built, monkeypatch):
    path, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(built, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    monkeypatch.setattr(model_file, "EXTERNAL_ABOVE", 1000)
    report = lower(path, target, layout="csr")
    (data,) = tmp_path.glob("out-*.data")
    assert report.bytes == target.stat().st_size + data.stat().st_size
    x = np.ones((2, 64), np.float32)
    np.testing.assert_allclose(Session(target).run({"x": x})["y"], np.maximum(x @ W, 0), rtol=1e-5, atol=1e-5)


def test_external_data_of_every_kind_of_constant(tmp_path, monkeypatch):
    """Main graph, subgraph and Constant node; typed fields; strings and small ones stay inside."""
    big = sparse_array(64, 64, density=1)
    branches = {}
    for branch, sign in (("then_branch", 1), ("else_branch", -1)):
        out = helper.make_tensor_value_info(f"{branch}_y", TensorProto.FLOAT, None)
        stored = numpy_helper.from_array(sign * big, f"{branch}_c")
        inner = [node("MatMul", ["h", f"{branch}_c"], f"{branch}_y")]
        branches[branch] = helper.make_graph(inner, branch, [], [out], [stored])
    nodes = [
        node("Constant", [], "k", value=numpy_helper.from_array(sparse_array(64, 512, density=1))),
        node("MatMul", ["x", "k"], "wide"),
        node("ReduceMean", ["wide"], "mean", keepdims=1),
        node("MatMul", ["x", "w"], "h"),
        node("If", ["flag"], "u", **branches),
        node("Add", ["u", "mean"], "v"),
        node("Mul", ["v", "t"], "y"),
    ]
    built = model(
        nodes,
        {"x": ("n", 64), "flag": ()},
        {"y": (None, None)},
        {"w": sparse_array(64, 64), "t": np.zeros(64, np.float32)},
        types={"flag": TensorProto.BOOL},
    )
    built.graph.initializer[1].CopyFrom(helper.make_tensor("t", TensorProto.FLOAT, [64], [0.5] * 64))
    built.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a" * 2000, b"b"]))
    path, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(built, path)
    monkeypatch.setattr(model_file, "EXTERNAL_ABOVE", 1000)
    report = lower(path, target, layout="csr")
    assert report.nodes.sparse == 2
    assert target.stat().st_size < 20_000
    (data,) = tmp_path.glob("out-*.data")
    assert report.bytes == target.stat().st_size + data.stat().st_size
    feeds = {"x": np.ones((2, 64), np.float32), "flag": np.array(True)}
    expected, actual = (Session(item).run(feeds)["y"] for item in (path, target))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)
    lower(target, path, layout="csr")
    np.testing.assert_allclose(Session(path).run(feeds)["y"], expected, rtol=1e-4, atol=1e-3)


def test_external_data_of_any_size_where_it_is_asked_for(tmp_path, built):
    path, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(built, path)
    report = lower(path, target, layout="csr", external_data=True)
    (data,) = tmp_path.glob("out-*.data")
    assert report.data_files == (data.name,)
    assert lower(path, tmp_path / "one.onnx", layout="csr").data_files == ()
    x = np.ones((2, 64), np.float32)
    expected, actual = (Session(tmp_path / name).run({"x": x})["y"] for name in ("one.onnx", "out.onnx"))
    np.testing.assert_array_equal(actual, expected)


def test_models_without_data_files_are_not_read_again(tmp_path, built, monkeypatch):
    path = tmp_path / "model[1].onnx"
    with model_file.staged(built, path, external_data=True):
        pass
    assert len(model_file.data_files(path)) == 1
    onnx.save(built, tmp_path / "plain.onnx")
    monkeypatch.delattr(onnx, "load")
    assert model_file.data_files(tmp_path / "plain.onnx") == ()


def test_constants_too_small_to_move_leave_no_empty_file(tmp_path, built):
    built.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((4, 2), np.float32), "w"))
    with model_file.staged(built, tmp_path / "a.onnx", external_data=True):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["a.onnx"]


def test_large_tensors_start_on_pages(tmp_path):
    """A page that two tensors share could only be given back with both."""
    sizes = {"small": 300, "page": 5000, "tiny": 257, "mapped": 1 << 18}
    weights = {name: np.ones(size, np.float32) for name, size in sizes.items()}
    nodes = [node("Add", ["x", name], f"{name}_y") for name in weights]
    built = model(nodes, {"x": (1,)}, {f"{name}_y": (None,) for name in weights}, weights)
    with model_file.staged(built, tmp_path / "a.onnx", external_data=True):
        pass
    offsets = {
        tensor.name: int(entry.value)
        for tensor in onnx.load(tmp_path / "a.onnx", load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    }
    assert {name: offset % (1 << 16) for name, offset in offsets.items()} == {
        "small": 0,
        "page": 4096,
        "tiny": (4096 + 20000 + 63) // 64 * 64,
        "mapped": 0,
    }
    for name, value in Session(tmp_path / "a.onnx").run({"x": np.ones(1, np.float32)}).items():
        np.testing.assert_array_equal(value, np.full(sizes[name.removesuffix("_y")], 2, np.float32))


def test_failure_leaves_external_data_that_was_there(tmp_path, built, monkeypatch):
    path, target = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(built, path)
    monkeypatch.setattr(model_file, "EXTERNAL_ABOVE", 1000)
    lower(path, target, layout="csr")
    before = {item.name for item in tmp_path.iterdir()}

    def fail(*_, **__):
        raise ParityError("no")

    monkeypatch.setattr(pipeline, "compare", fail)
    with pytest.raises(ParityError):
        lower(path, target, layout="csr")
    assert {item.name for item in tmp_path.iterdir()} == before
    Session(target).run({"x": np.ones((2, 64), np.float32)})


def test_model_that_is_too_large_even_without_its_constants(tmp_path, built, monkeypatch):
    onnx.save(built, tmp_path / "a.onnx")

    def refuse(*_):
        raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", refuse)
    with (
        pytest.raises(UserError, match="2 GB"),
        model_file.staged(read_model(tmp_path / "a.onnx"), tmp_path / "b.onnx"),
    ):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["a.onnx"]


def test_missing_folder(tmp_path, built):
    onnx.save(built, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="cannot be written"):
        lower(tmp_path / "a.onnx", tmp_path / "nowhere" / "b.onnx")


def test_unknown_layout(tmp_path):
    with pytest.raises(UserError, match=r"unknown layout 'coo'; choose one of csr, .*dense"):
        lower(tmp_path / "a.onnx", tmp_path / "b.onnx", layout="coo")


def test_lowering_loads_no_torch():
    code = "import sys, sparsify.lowering; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
