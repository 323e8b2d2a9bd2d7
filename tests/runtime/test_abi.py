from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sparsify.runtime
from sparsify.runtime import layouts, library_path
from sparsify.runtime.reference import sparse_linear
from tests.runtime.graphs import masked, one_node, values

HEADER = Path(sparsify.runtime.__file__).parent / "native" / "ort" / "abi.h"
LAST_SLOT = 275  # of API version 17
SLOTS = {
    "CreateStatus": 0,
    "GetErrorMessage": 2,
    "CreateCustomOpDomain": 26,
    "CustomOpDomain_Add": 27,
    "AddCustomOpDomain": 28,
    "GetTensorMutableData": 51,
    "CreateTensorTypeAndShapeInfo": 57,
    "SetTensorElementType": 58,
    "SetDimensions": 59,
    "GetTensorElementType": 60,
    "GetDimensionsCount": 61,
    "GetDimensions": 62,
    "GetSymbolicDimensions": 63,
    "GetTensorTypeAndShape": 65,
    "CreateCpuMemoryInfo": 69,
    "MemoryInfoGetId": 72,
    "AllocatorAlloc": 75,
    "AllocatorFree": 76,
    "KernelInfoGetAttribute_float": 85,
    "KernelInfoGetAttribute_int64": 86,
    "KernelInfoGetAttribute_string": 87,
    "KernelContext_GetInput": 90,
    "KernelContext_GetOutput": 91,
    "ReleaseStatus": 93,
    "ReleaseTensorTypeAndShapeInfo": 99,
    "ReleaseAllocator": 132,
    "KernelInfoGetAttributeArray_float": 162,
    "KernelInfoGetAttributeArray_int64": 163,
    "KernelContext_GetGPUComputeStream": 193,
    "GetTensorMemoryInfo": 194,
    "MemoryInfoGetDeviceType": 225,
    "KernelInfo_GetInputCount": 230,
    "HasSessionConfigEntry": 237,
    "GetSessionConfigEntry": 238,
    "KernelInfo_GetNodeName": 244,
    "KernelInfoGetConstantInput_tensor": 249,
    "KernelContext_GetAllocator": 253,
    "ShapeInferContext_GetInputTypeShape": 268,
    "ShapeInferContext_GetAttribute": 269,
    "ShapeInferContext_SetOutputTypeShape": 270,
    "SetSymbolicDimensions": 271,
    "ReadOpAttr": 272,
    "KernelContext_ParallelFor": 274,
}


def _table() -> str:
    text = HEADER.read_text(encoding="utf-8")
    return text[text.index("struct OrtApi {") : text.index("struct OrtApiBase {")]


def test_every_slot_is_asserted_and_of_the_oldest_supported_version():
    asserted = {name: int(slot) for slot, name in re.findall(r"SPARSIFY_ORT_SLOT\((\d+), (\w+)\)", _table())}
    assert asserted == SLOTS
    assert max(asserted.values()) <= LAST_SLOT


def test_the_members_of_the_table_lie_where_the_slots_say():
    members = re.findall(
        r"SPARSIFY_ORT_FN\((\w+),|SPARSIFY_ORT_CALL\* (\w+)\)|SPARSIFY_ORT_SKIP\((\d+), (\d+)\)", _table()
    )
    slot, found = 0, {}
    for function, other, first, count in members:
        if count:
            assert int(first) == slot
            slot += int(count)
        else:
            found[function or other] = slot
            slot += 1
    assert found == SLOTS
    assert slot - 1 <= LAST_SLOT


def test_the_operator_table_has_the_size_of_version_17():
    text = HEADER.read_text(encoding="utf-8")
    assert "sizeof(OrtCustomOp) == 208" in text
    assert "kApiVersion = 17;" in text
    assert f"kLastSlot = {LAST_SLOT};" in text
    members = re.findall(r"SPARSIFY_ORT_CALL\* (\w+)\)\(", text[text.index("struct OrtCustomOp {") :])
    assert 8 + 8 * len(members) == 208


@pytest.mark.skipif(shutil.which("nm") is None or sys.platform != "linux", reason="reads ELF symbols with nm")
def test_the_library_exports_its_two_interfaces_and_nothing_else():
    table = subprocess.run(
        ["nm", "-D", "--defined-only", str(library_path())], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in table.stdout.splitlines()}
    assert "RegisterCustomOps" in names
    assert "sparsify_pack" in names
    assert [name for name in names if name != "RegisterCustomOps" and not name.startswith("sparsify_")] == []


@pytest.mark.skipif(
    not os.environ.get("SPARSIFY_TEST_OLD_ORT"),
    reason="set SPARSIFY_TEST_OLD_ORT to install ONNX Runtime 1.17.3 beside the current one and run in it",
)
def test_the_same_library_runs_in_the_oldest_supported_onnxruntime(tmp_path: Path):
    weight, bias, x = masked((19, 37), 0.3), values((19,)), values((2, 3, 37), 2)
    residual = values((2, 3, 19), 3)
    packed = layouts.pack_linear(weight)
    data = one_node(packed, ["n", "s", 37], bias=bias, residual=["n", "s", 19], activation="relu")
    without = one_node(packed, ["n", "s", 37])
    (tmp_path / "full.onnx").write_bytes(data)
    (tmp_path / "bare.onnx").write_bytes(without)
    np.savez(tmp_path / "in.npz", x=x, residual=residual)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", "onnxruntime==1.17.3", "numpy<2"]
    subprocess.run(install, check=True)
    script = """
import sys, numpy as np, onnxruntime as ort
library, folder = sys.argv[1:]
feeds = dict(np.load(f"{folder}/in.npz"))
assert ort.__version__ == "1.17.3"
results = {}
for name, inputs in (("full", ("x", "residual")), ("bare", ("x",))):
    for threads in (1, 2):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.register_custom_ops_library(library)
        session = ort.InferenceSession(f"{folder}/{name}.onnx", options, providers=["CPUExecutionProvider"])
        results[f"{name}{threads}"] = session.run(None, {key: feeds[key] for key in inputs})[0]
np.savez(f"{folder}/out.npz", **results)
"""
    subprocess.run([str(python), "-c", script, str(library_path()), str(tmp_path)], check=True)
    results = dict(np.load(tmp_path / "out.npz"))
    assert set(results) == {"full1", "full2", "bare1", "bare2"}
    for name, got in results.items():
        full = name.startswith("full")
        want = sparse_linear(
            x, packed, bias if full else None, residual if full else None, "relu" if full else "none"
        )
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
