"""The C example, built with the C compiler at hand and run on a lowered model without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from sparsify.runtime import Session, library_path
from tests.lowering.graphs import lowered, model, node, operators, sparse_array

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
ORT_LIBRARY = next(
    (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.[0-9]*"), None
)  # newer wheels carry it

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C compiler: set CC"),
    pytest.mark.skipif(
        ORT_LIBRARY is None, reason=f"ONNX Runtime {onnxruntime.__version__} here brings no libonnxruntime.so"
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built example."""
    folder = tmp_path_factory.mktemp("c")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(ORT_LIBRARY)
    source, built = ROOT / "examples" / "c" / "run_model.c", folder / "run_model"
    # Undefined symbols of ONNX Runtime's library itself are the business of the system that it was built for.
    words = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-I", ROOT / "tests" / "native" / "onnxruntime"]
    words += [source, "-L", folder, "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", built]
    done = subprocess.run([COMPILER, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture(scope="module")
def sparse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lowered model of two layers: [n, 24] to [n, 10]."""
    weights = {"a": sparse_array(24, 40), "b": sparse_array(40, 10, seed=1)}
    layers = [
        node("MatMul", ["x", "a"], "h"),
        node("Relu", ["h"], "r"),
        node("MatMul", ["r", "b"], "y"),
    ]
    folder = tmp_path_factory.mktemp("model")
    _, result = lowered(model(layers, {"x": ("n", 24)}, {"y": ("n", 10)}, weights), folder)
    assert operators(result) == ["SparseFeedForward"]
    onnx.save(result, folder / "sparse.onnx")
    return folder / "sparse.onnx"


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (9, 2)])
def test_it_prints_what_a_session_computes(
    program: Path, sparse_file: Path, batch: int, threads: int
) -> None:
    done = run(program, library_path(), sparse_file, batch, threads)
    assert done.returncode == 0, done.stderr
    head, values = done.stdout.splitlines()
    assert head == f"y {batch}x10"
    x = (np.arange(batch * 24) % 17 / 8 - 1).astype(np.float32).reshape(batch, 24)
    want = Session(sparse_file, threads=threads).run({"x": x})["y"]
    got = np.array(values.split(), np.float32).reshape(batch, 10)
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_errors_of_the_runtime_end_it_with_their_message(program: Path, sparse_file: Path) -> None:
    missing = run(program, sparse_file.parent / "nowhere.so", sparse_file)
    assert missing.returncode == 1 and "nowhere.so" in missing.stderr
    broken = sparse_file.parent / "broken.onnx"
    graph = onnx.load(sparse_file)
    header = next(one for one in graph.graph.initializer if one.data_type == onnx.TensorProto.INT32)
    header.raw_data = bytes(len(header.raw_data))
    onnx.save(graph, broken)
    corrupt = run(program, library_path(), broken)
    assert corrupt.returncode == 1 and "does not begin with the layout's mark" in corrupt.stderr
