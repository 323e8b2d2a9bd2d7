"""What doctor, sessions and benchmarks say where there is no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks import cuda_resources
from sparsify.errors import RuntimeLibraryError, UserError
from sparsify.runtime import Session, bench, checks, cuda, doctor
from sparsify.runtime.bench_provider import bound_call, precisions
from sparsify.runtime.session_options import check_running
from tests.runtime.graphs import sparse_mlp

ON_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
NVCC = cuda.cuda_state().nvcc
no_cuda = pytest.mark.skipif(ON_CUDA, reason="this ONNX Runtime has the CUDA provider")


def state(**changes: object) -> cuda.CudaState:
    found = {
        "missing": None,
        "reason": "",
        "driver": "13.0",
        "devices": 1,
        "device": "Stub GPU (sm_90)",
        "kernels": "/there/kernels.fatbin",
        "provider": True,
        "nvcc": None,
        "triton": "3.9.0",
    }
    return cuda.CudaState(**(found | changes))


def test_doctor_tells_what_is_there_and_never_fails_for_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSIFY_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    report = doctor()
    json.dumps(report)
    (check,) = [check for check in report["checks"] if check["name"] == "cuda"]
    assert check["ok"]
    assert set(report["cuda"]) == set(cuda.CudaState.__dataclass_fields__)
    assert report["cuda"]["provider"] == ON_CUDA


@pytest.mark.parametrize(
    ("changes", "found", "advice"),
    [
        ({}, "driver 13.0, Stub GPU (sm_90), kernels compiled, provider in ONNX Runtime", ""),
        ({"missing": "driver", "driver": None, "devices": 0, "device": None}, "no driver, no device", ""),
        ({"missing": "kernels", "kernels": None}, "no compiled kernels", "where nvcc is"),
        ({"missing": "kernels", "reason": "they do not load"}, "kernels compiled", "they do not load"),
        ({"missing": "provider", "provider": False}, "no provider in ONNX Runtime", "onnxruntime-gpu"),
    ],
)
def test_each_thing_that_is_missing_has_its_advice(changes: dict, found: str, advice: str):
    check = checks._cuda(state(**changes))
    assert found in check.detail
    assert advice in check.advice
    assert bool(advice) == bool(check.advice)
    assert ("models run on the CPU" in check.detail) == ("missing" in changes)


@no_cuda
def test_a_session_and_a_benchmark_say_that_the_provider_is_missing(tmp_path: Path):
    path = sparse_mlp(tmp_path / "mlp.onnx")
    with pytest.raises(UserError, match=r"no provider 'CUDAExecutionProvider'.*install onnxruntime-gpu"):
        Session(path, providers=["CUDAExecutionProvider"])
    with pytest.raises(UserError, match="install onnxruntime-gpu"):
        bench(path, provider="cuda", duration=0.02)
    with pytest.raises(UserError, match="unknown provider 'tpu'; choose one of cpu, cuda"):
        bench(path, provider="tpu", duration=0.02)


def test_a_provider_that_falls_back_is_an_error():
    asked = [("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]
    check_running(asked, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    check_running([], ["CPUExecutionProvider"])
    with pytest.raises(RuntimeLibraryError, match="CUDAExecutionProvider did not start"):
        check_running(asked, ["CPUExecutionProvider"])


def test_a_bound_call_computes_what_a_plain_one_does(tmp_path: Path):
    session = Session(sparse_mlp(tmp_path / "mlp.onnx"))
    x = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    binding = bound_call(session, {"x": x}, "cpu")()
    (got,) = binding.copy_outputs_to_cpu()
    np.testing.assert_array_equal(got, session.run({"x": x})["y"])


def test_a_wrong_precision_in_the_environment_does_not_matter_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = sparse_mlp(tmp_path / "mlp.onnx")
    x = np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)
    expected = Session(model).run({"x": x})["y"]
    monkeypatch.setenv("SPARSIFY_CUDA_PRECISION", "double")
    np.testing.assert_array_equal(Session(model).run({"x": x})["y"], expected)


def test_bench_says_what_it_ran_on(tmp_path: Path):
    report = bench(sparse_mlp(tmp_path / "mlp.onnx"), duration=0.02, warmup=0)
    assert report["provider"] == "cpu"
    assert report["precision"] == {"dense": "float32", "sparse": "float32"}


def test_the_precisions_of_a_gpu_are_stated(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SPARSIFY_CUDA_PRECISION", raising=False)
    assert precisions("cuda") == {"dense": "tf32", "sparse": "float32"}
    monkeypatch.setenv("SPARSIFY_CUDA_PRECISION", "half")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert precisions("cuda") == {"dense": "float32", "sparse": "half"}


LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'tile_1_2' for 'sm_90'
ptxas info    : Function properties for tile_1_2
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size, 35328 bytes smem
ptxas info    : Function properties for helper
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'gather_1_1' for 'sm_80'
ptxas info    : Function properties for gather_1_1
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, 400 bytes cmem[0]
"""


def test_the_compilers_words_are_read():
    first, second = cuda_resources.parse(LOG)
    assert (first.kernel, first.architecture, first.registers, first.shared) == ("gather_1_1", "sm_80", 32, 0)
    assert (second.kernel, second.registers, second.shared) == ("tile_1_2", 64, 35328)
    assert (second.stack, second.spill_stores, second.spill_loads) == (8, 4, 12)


def test_the_table_covers_every_kernel_and_architecture_without_spills():
    rows = json.loads(cuda_resources.RESULT.read_text(encoding="utf-8"))["kernels"]
    kinds = [f"{kind}_{block}" for kind in ("gather", "tile", "conv") for block in (1, 2, 4, 8, 16)]
    names = {f"{kind}_{variant}" for kind in kinds for variant in ((1, 4) if "gather" in kind else (1, 2))}
    names |= {
        f"{kind}_{block}_{variant}"
        for kind in ("split", "tf32", "half")
        for block in (8, 16)
        for variant in (1, 2, 4)
    }
    assert {(row["kernel"], row["architecture"]) for row in rows} == {
        (name, architecture) for name in names for architecture in cuda_resources.ARCHITECTURES
    }
    assert [row for row in rows if row["spill_stores"] or row["shared"] > 48 * 1024] == []


ONE_KERNEL = """#include "linear_gather.h"
namespace sparsify::cuda {
extern "C" __global__ void __launch_bounds__(128) gather_4_1(LinearArguments a) { LinearGather<4, 1>(a); }
}
"""

TENSOR_KERNEL = """#include "linear_tensor.h"
namespace sparsify::cuda {
extern "C" __global__ void __launch_bounds__(256, 2) split_8_1(LinearArguments a) {
  LinearTensor<Operands::kSplit, 8, 1>(a);
}
}
"""


@pytest.mark.skipif(NVCC is None, reason="needs nvcc to compile a kernel: set CUDA_HOME")
def test_a_kernel_compiles_without_spills_and_a_mistake_does_not_compile(tmp_path: Path):
    source = tmp_path / "one.cu"
    source.write_text(ONE_KERNEL, encoding="utf-8")
    (usage,) = cuda_resources.parse(cuda_resources.compile_log(NVCC, "sm_90", source))
    assert (usage.kernel, usage.architecture, usage.spill_stores) == ("gather_4_1", "sm_90", 0)
    assert 0 < usage.registers <= 64
    source.write_text(TENSOR_KERNEL, encoding="utf-8")
    (usage,) = cuda_resources.parse(cuda_resources.compile_log(NVCC, "sm_80", source))
    assert (usage.kernel, usage.spill_stores, usage.stack) == ("split_8_1", 0, 0)
    source.write_text(ONE_KERNEL.replace("<4, 1>", "<4>"), encoding="utf-8")
    with pytest.raises(UserError, match="LinearGather"):
        cuda_resources.compile_log(NVCC, "sm_90", source)
