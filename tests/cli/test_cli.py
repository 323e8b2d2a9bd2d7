"""The command line: one JSON object on stdout, talk on stderr, exit codes as documented."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from sparsify import api
from sparsify.archive import wrap


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 32, 3, padding=1, stride=2)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv(torch.relu(self.stem(x))))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    api.save(wrap(api.trace(Net(), (torch.zeros(2, 1, 8, 8),))), path)
    return path


def as_json(captured):
    return json.loads(captured.out)


def test_transform_prints_one_object_with_the_keys_of_the_contract(run, model_file, tmp_path):
    out = tmp_path / "sparse.pt2"
    data = as_json(run("transform", model_file, "-o", out, "--sparsity", "0.75", "--format", "json"))
    assert abs(data["flops"]["ratio"] - 1) < 1e-3
    assert data["flops"]["sparse"] == pytest.approx(data["flops"]["dense"] * data["flops"]["ratio"])
    assert data["parameters"]["nonzero"] < data["parameters"]["stored"]
    assert data["weights"] == "new"
    assert {"fqn", "kind", "family", "density", "width", "flops"} <= set(data["layers"][0])
    assert {row["fqn"] for row in data["refusals"]} >= {"stem", "fc"}
    assert data["output"] == str(out) and out.exists()


def test_a_plan_is_written_edited_and_fed_back(run, model_file, tmp_path):
    plan = tmp_path / "plan.json"
    first = as_json(run("transform", model_file, "--plan-only", "-o", plan, "--format", "json"))
    again = as_json(
        run("transform", model_file, "--plan", plan, "-o", tmp_path / "sparse.pt2", "--format", "json")
    )
    assert again["flops"] == first["flops"] and again["layers"] == first["layers"]
    plan.write_text(plan.read_text().replace('"conv2"', '"conv9"'))
    failed = run("transform", model_file, "--plan", plan, "-o", tmp_path / "no.pt2", code=1)
    assert "conv9" in failed.err and not (tmp_path / "no.pt2").exists()


def test_train_export_and_bench(run, model_file, tmp_path):
    sparse, trained, onnx = tmp_path / "s.pt2", tmp_path / "t.pt2", tmp_path / "m.onnx"
    run("transform", model_file, "-o", sparse, "--sparsity", "0.9")
    train = ("finetune", sparse, "--data", "digits", "--steps", "12", "--lr", "0.01", "-o", trained)
    data = as_json(run(*train, "--format", "json"))
    assert 0 < data["density"] < 1 and 0 <= data["metrics"]["accuracy"] <= 1
    data = as_json(run("export", trained, "-o", onnx, "--format", "json"))
    assert data["max_abs_error"] < 1e-3 and data["bytes"] == onnx.stat().st_size
    dense = tmp_path / "d.onnx"
    run("export", model_file, "-o", dense, "--dense")
    timing = ("bench", onnx, "--baseline", dense, "--batch", "1,3", "--duration", "0.1", "--warmup", "1")
    data = as_json(run(*timing, "--format", "json"))
    assert {(row["batch"], row["threads"]) for row in data["results"]} == {(1, 1), (3, 1)}
    assert data["baseline"] == {"kind": "original", "file": str(dense)}
    run(*timing, "--require-speedup", "1000", code=3)
    alone = run("bench", onnx, "--duration", "0.1", "--require-speedup", "0.001", code=3)
    assert "--baseline" in alone.err or "baseline" in alone.err


def test_inspect_describes_both_kinds_of_file(run, model_file, tmp_path):
    data = as_json(run("inspect", model_file, "--format", "json"))
    assert {layer["fqn"]: layer["role"] for layer in data["layers"]} == {
        "stem": "input",
        "conv": "hidden",
        "conv2": "hidden",
        "fc": "readout",
    }
    dense = tmp_path / "d.onnx"
    run("export", model_file, "-o", dense, "--dense")
    assert len(as_json(run("inspect", dense, "--format", "json"))["layers"]) == 4


def test_bench_layer(run):
    words = ("bench-layer", "--linear", "64x32", "--sparsity", "0.9", "--batch", "1,5", "--duration", "0.1")
    rows = as_json(run(*words, "--format", "json"))["results"]
    assert [row["batch"] for row in rows] == [1, 5]
    keys = {"sparsity", "batch", "pattern", "layout", "kernel", "dense_us", "sparse_us", "speedup", "gflops"}
    assert keys <= set(rows[0])


def test_doctor_finds_the_library(run):
    data = as_json(run("doctor", "--format", "json"))
    assert data["ok"] and all(check["ok"] for check in data["checks"] if check.get("required", True))


def test_a_pickle_is_not_loaded_without_consent(run, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(8, 8), path)
    assert "--trust-pickle" in run("transform", path, "-o", tmp_path / "o.pt2", code=1).err


def test_a_pickle_needs_its_inputs_described(run, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), path
    )
    words = ("transform", path, "-o", tmp_path / "o.pt2", "--trust-pickle", "--format", "json")
    assert "--input" in run(*words, code=1).err
    assert as_json(run(*words, "--input", "input:float32[batch,8]"))["flops"]["ratio"] == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("transform", "missing.pt", "-o", "x.pt2"), 1),
        (("lower", "missing.onnx", "-o", "x.onnx"), 1),
        (("bench", "missing.onnx"), 1),
        (("bench-layer",), 2),
        (("bench-layer", "--linear", "8x8", "--batch", "0"), 2),
        (("transform", "model.pt"), 2),
        (("nothing",), 2),
    ],
)
def test_exit_codes_of_bad_calls(run, words, code):
    captured = run(*words, code=code)
    assert captured.out == "" and captured.err.strip()


def test_a_corrupt_file_gets_a_clear_error(run, model_file, tmp_path):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(model_file.read_bytes()[:3000])
    err = run("inspect", broken, code=1).err
    assert "broken.pt" in err.replace("\n", "") and "Traceback" not in err


def test_runtime_and_lowering_load_no_torch():
    code = "import sys, sparsify.runtime, sparsify.lowering; sparsify.lower; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_error_is_one_line_however_long_a_path_is(run, tmp_path):
    missing = tmp_path / ("deep" * 30) / "model.pt2"
    assert str(missing) in run("inspect", missing, code=1).err
