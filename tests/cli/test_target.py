"""`lower --target`, `bench --provider` and what `doctor` says of CUDA, from the command line."""

from __future__ import annotations

import json

import onnx
import onnxruntime
import pytest

from sparsify.lowering.gpu_cost import NOTE
from tests.lowering.graphs import model, node, sparse_array


@pytest.fixture
def pruned(tmp_path):
    weight = sparse_array(512, 512, density=0.05)
    built = model([node("MatMul", ["x", "w"], "y")], {"x": ("n", 512)}, {"y": ("n", 512)}, {"w": weight})
    onnx.save(built, tmp_path / "pruned.onnx")
    return tmp_path / "pruned.onnx"


def test_a_lowering_for_cuda_says_that_its_estimate_is_not_measured(run, pruned, tmp_path):
    words = ("lower", pruned, "-o", tmp_path / "out.onnx", "--target", "cuda", "--batch", "1")
    (layer,) = json.loads(run(*words, "--format", "json").out)["layers"]
    assert NOTE in layer["reason"]
    assert "on 1 rows" not in layer["reason"]
    assert "on 1 row," in layer["reason"]


def test_targets_that_do_not_go_together_are_refused(run, pruned, tmp_path):
    out = tmp_path / "out.onnx"
    assert "unknown target" in run("lower", pruned, "-o", out, "--target", "rocm", code=1).err
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        assert "leave tune out" in run("lower", pruned, "-o", out, "--target", "cuda", "--tune", code=1).err
    assert not out.exists()


def test_what_if_for_cuda_says_that_it_is_an_estimate(run, pruned):
    words = ("lower", pruned, "--what-if", "0.9", "--pattern", "16x1", "--target", "cuda", "--batch", "1")
    shown = run(*words)
    assert "estimated dense ms" in shown.out + shown.err
    assert "nothing was timed" in (shown.out + shown.err).replace("\n", " ")
    data = json.loads(run(*words, "--format", "json").out)
    assert data["what_if"]["estimated"]
    assert data["what_if"]["speedup"] > 1 or data["nodes"]["sparse"] == 0


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has the CUDA provider",
)
def test_a_benchmark_without_the_provider_says_what_to_install(run, pruned):
    assert "onnxruntime-gpu" in run("bench", pruned, "--provider", "cuda", code=1).err


def test_doctor_has_what_it_found_of_cuda(run):
    data = json.loads(run("doctor", "--format", "json").out)
    assert {"missing", "reason", "driver", "device", "kernels", "provider", "nvcc", "triton"} <= set(
        data["cuda"]
    )
