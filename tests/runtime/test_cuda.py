"""The operators for CUDAExecutionProvider without a GPU: the native test programs on the stub driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import Session, layouts, library_path
from sparsify.runtime.reference import sparse_linear
from tests.runtime.graphs import masked, one_node, values

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
FLAGS = ["-std=c++17", "-I", "sparsify/runtime/native", "-I", "tests/native"]
needs_compiler = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux",
    reason="the stub driver needs Linux and a C++ compiler: set CXX",
)

pytestmark = pytest.mark.timeout(900)  # two programs are compiled, which takes long beside other work

Run = Callable[..., subprocess.CompletedProcess[str]]


def _compile(*words: object) -> None:
    done = subprocess.run(
        [str(COMPILER), *FLAGS, *map(str, words)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the test program with arguments and environment variables; None takes a variable away."""
    folder = tmp_path_factory.mktemp("cuda")
    native, library = Path("tests/native"), library_path()
    stub = ["-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas", native / "cuda_stub_driver.cc"]
    sources = ["-O0", native / "cuda_test.cc", native / "cuda_contract_test.cc"]
    sources += [native / "cuda_tensor_test.cc", library, "-ldl"]
    with ThreadPoolExecutor() as pool:
        for built in (
            pool.submit(_compile, *stub, "-o", folder / "libcuda_stub.so"),
            pool.submit(_compile, *sources, f"-Wl,-rpath,{library.parent}", "-o", folder / "cuda_test"),
        ):
            built.result()
    (folder / "kernels.fatbin").write_bytes(b"the stub takes anything")
    defaults = {
        "SPARSIFY_CUDA_DRIVER": str(folder / "libcuda_stub.so"),
        "SPARSIFY_CUDA_KERNELS": str(folder / "kernels.fatbin"),
    }

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "cuda_test"), *arguments]
        environment = os.environ | defaults | changes
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=120
        )

    return run


@needs_compiler
@pytest.mark.parametrize("what", ["registration", "launches", "errors", "results", "tensor", "convolutions"])
def test_the_operators_on_the_stub_driver(program: Run, what: str):
    done = program(what)
    assert done.returncode == 0, done.stderr
    assert f"{what}: " in done.stdout
    if what in ("results", "tensor", "convolutions"):
        assert int(done.stdout.split()[1]) >= 40


@needs_compiler
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"SPARSIFY_CUDA_DRIVER": "/nowhere/libcuda.so.1"}, "there is no CUDA driver"),
        ({"SPARSIFY_CUDA_KERNELS": "/nowhere/kernels.fatbin"}, "not installed (looked for /nowhere"),
        ({"SPARSIFY_STUB_DEVICES": "0"}, "there is no CUDA device 0"),
        ({"SPARSIFY_STUB_ARCH": "75"}, "do not load on Stub GPU (sm_75)"),
        ({"SPARSIFY_STUB_FAIL": "cuInit=999"}, "the CUDA driver does not start: CUDA_ERROR_999"),
        ({"SPARSIFY_STUB_FAIL": "cuDevicePrimaryCtxRetain=2"}, "no CUDA context on Stub GPU (sm_90)"),
        ({"SPARSIFY_STUB_FAIL": "cuModuleGetFunction=500"}, "is of another version"),
    ],
)
def test_what_is_missing_is_said_at_the_node(program: Run, changes: dict[str, str], text: str):
    done = program("creation", text, **changes)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_the_program_notices_a_message_that_is_not_there(program: Run):
    done = program("creation", "the cat is on the keyboard", SPARSIFY_STUB_DEVICES="0")
    assert done.returncode == 1
    assert "is not said in" in done.stderr


def test_sessions_on_the_cpu_run_with_both_sets_of_operators(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSIFY_CUDA_DRIVER", "/nowhere/libcuda.so.1")
    packed = layouts.pack_linear(masked((19, 37), 0.3), layout="blocks-4")
    x = values((5, 37))
    session = Session(one_node(packed, ["n", 37], activation="relu"))
    assert session.get_providers() == ["CPUExecutionProvider"]
    got = session.run({"x": x})["y"]
    np.testing.assert_allclose(got, sparse_linear(x, packed, activation="relu"), rtol=1e-5, atol=1e-5)


def test_a_precision_that_does_not_exist_is_named_and_others_leave_the_cpu_alone():
    packed = layouts.pack_linear(masked((16, 37), 0.3), layout="blocks-8")
    graph, x = one_node(packed, ["n", 37]), values((20, 37))
    with pytest.raises(RuntimeLibraryError, match="cuda_precision must be float32, tf32 or half, not 'int8'"):
        Session(graph, config={"ai.sparsify.cuda_precision": "int8"})
    rounded = Session(graph, config={"ai.sparsify.cuda_precision": "half"}).run({"x": x})["y"]
    np.testing.assert_array_equal(rounded, Session(graph).run({"x": x})["y"])
