"""`sparsify lower` from the command line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import onnx
import pytest

from sparsify.lowering import node_timing, tune
from sparsify.runtime import model_bench
from sparsify.runtime.roofline import Roofline
from tests.lowering.graphs import model, node, sparse_array


@pytest.fixture
def pruned(tmp_path):
    built = model(
        [node("MatMul", ["x", "w"], "y")],
        {"x": ("n", "length", 256)},
        {"y": ("n", "length", 256)},
        {"w": sparse_array(256, 256, density=0.1)},
    )
    onnx.save(built, tmp_path / "pruned.onnx")
    return tmp_path / "pruned.onnx"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    def watch(calls, **_):
        for call in calls:
            call()
        return [SimpleNamespace(median=1 / (1 + index)) for index in range(len(calls))]

    monkeypatch.setattr(tune, "interleave", watch)
    monkeypatch.setattr(node_timing, "interleave", watch)
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))


def test_tuning_takes_sizes_and_threads_and_keeps_its_times(run, pruned, tmp_path):
    target = tmp_path / "out.onnx"
    words = ("lower", pruned, "-o", target, "--tune", "--batch", "1,3", "--size", "length=7", "--threads", 1)
    data = json.loads(run(*words, "--format", "json").out)
    assert data["output"] == str(target)
    assert "what_if" not in data
    reason = data["layers"][0]["reason"]
    assert "on [1, 7, 256]" in reason
    assert "on [3, 7, 256]" in reason
    (times,) = (tmp_path / "cache").iterdir()
    before = times.read_bytes()
    run(*words)
    assert times.read_bytes() == before
    run(*words, "--no-cache")
    assert times.read_bytes() == before


def test_what_if_needs_no_output_and_says_that_accuracy_is_not_looked_at(run, pruned, tmp_path):
    shown = run("lower", pruned, "--what-if", "0.9", "--pattern", "16x1", "--threads", 1)
    assert "accuracy was not looked at" in shown.out
    assert "speedup" in shown.out
    assert "written" not in shown.out
    assert {path.name for path in tmp_path.iterdir()} <= {"pruned.onnx", "cache"}
    data = json.loads(run("lower", pruned, "--what-if", "0.9", "--format", "json", "--batch", 2).out)
    assert data["output"] is None
    assert data["what_if"]["results"][0]["inputs"] == {"x": [2, 128, 256]}
    written = run("lower", pruned, "--what-if", "0.9", "-o", tmp_path / "cut.onnx", "--batch", 1)
    assert "its weights were cut" in written.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "--output"),
        (("-o", "x.onnx", "--pattern", "4x1"), 2, "--pattern"),
        (("-o", "x.onnx", "--size", "length"), 2, "--size"),
        (("-o", "x.onnx", "--size", "width=4"), 1, "width"),
        (("-o", "x.onnx", "--layout", "coo"), 1, "coo"),
        (("--what-if", "9"), 1, "sparsity"),
        (("--what-if", "0.9", "--external-data"), 2, "--external-data"),
    ],
)
def test_bad_calls_say_what_is_wrong(run, pruned, words, code, said):
    assert said in run("lower", pruned, *words, code=code).err


def test_weights_in_a_file_of_their_own_are_named(run, pruned, tmp_path):
    words = ("lower", pruned, "-o", tmp_path / "out.onnx", "--layout", "csr", "--external-data")
    data = json.loads(run(*words, "--format", "json").out)
    (file,) = tmp_path.glob("out-*.data")
    assert data["data_files"] == [file.name]
    assert data["bytes"] == file.stat().st_size + (tmp_path / "out.onnx").stat().st_size
    assert f"its weights are in {file.name}" in run(*words).out


def test_a_profile_says_what_nodes_achieve_and_can_be_drawn(run, pruned, tmp_path, monkeypatch):
    ceiling = Roofline(100.0, 10.0, 1, "made up")
    monkeypatch.setattr(model_bench, "measure_roofline", lambda threads, size: ceiling)
    target, plot = tmp_path / "out.onnx", tmp_path / "profile.svg"
    run("lower", pruned, "-o", target, "--layout", "csr")
    words = ("bench", target, "--duration", 0.05, "--warmup", 0, "--profile", "--size", "length=5")
    shown = run(*words, "--save-plot", plot).out
    assert "roofline: 100 GFLOP/s, 10 GB/s, made up" in shown
    assert "256×256 @5" in shown
    assert "csr" in shown
    assert f"plot: {plot}" in shown
    assert "linear 256×256" in plot.read_text(encoding="utf-8")
    assert "--save-plot" in run("bench", target, "--save-plot", plot, code=2).err
