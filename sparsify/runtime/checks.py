"""Checks an installation and says what to do about what is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime

from sparsify.errors import SparsifyError
from sparsify.runtime import library
from sparsify.runtime.cuda import CudaState, cuda_state
from sparsify.runtime.environment import cores, cpu_model
from sparsify.runtime.library import library_path

_OLDEST_ONNXRUNTIME = (1, 17)


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        ok: False where something will not work.
        detail: What was found.
        advice: What to do about it; empty where nothing is needed.
    """

    name: str
    ok: bool
    detail: str
    advice: str = ""


def doctor() -> dict[str, Any]:
    """Looks at Python, ONNX Runtime, PyTorch, the native library, the CPU and the GPU provider.

    Returns:
        `ok` (every check is), `checks[{name, ok, detail, advice}]`, and `cuda`, the fields of `CudaState`.
    """
    cuda = cuda_state()
    checks = [
        _python(),
        _onnxruntime(),
        _torch(),
        _library(),
        _registered(),
        _self_test(),
        _cpu(),
        _kernel(),
        _cuda(cuda),
    ]
    return {
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) for check in checks],
        "cuda": cuda.to_dict(),
    }


def _python() -> Check:
    return Check("python", True, f"{platform.python_version()} at {sys.executable}")


def _onnxruntime() -> Check:
    version = onnxruntime.__version__
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < _OLDEST_ONNXRUNTIME:
        return Check("onnxruntime", False, version, "install onnxruntime 1.17 or newer")
    return Check("onnxruntime", True, version)


def _torch() -> Check:
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Check("torch", True, "not installed", "install torch to transform, train or export models")
    return Check("torch", True, version)


def _library() -> Check:
    try:
        library.load()
        return Check("library", True, f"{library_path()}, C ABI {library.ABI_VERSION}")
    except SparsifyError as error:
        return Check("library", False, str(error), "install the package again with `pip install .`")


def _registered() -> Check:
    options = onnxruntime.SessionOptions()
    try:
        options.register_custom_ops_library(str(library_path()))
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        return Check("operators", False, str(error), "install the package again with `pip install .`")
    return Check("operators", True, "ai.sparsify registered with ONNX Runtime")


def _self_test() -> Check:
    from sparsify.runtime.layer_bench import check_layer

    try:
        errors = [check_layer(text) for text in ("37x19", "8x8x3x3@9x7")]
    except SparsifyError as error:
        return Check("self-test", False, str(error), "try SPARSIFY_KERNEL=scalar, and report this")
    return Check("self-test", True, f"linear and convolution agree with dense to {np.max(errors):.1e}")


def _cpu() -> Check:
    try:
        flags = ", ".join(library.cpu_flags()) or "none that matter"
    except SparsifyError:
        flags = "unknown without the library"
    return Check("cpu", True, f"{cpu_model()}, {cores()} cores, flags: {flags}")


def _kernel() -> Check:
    forced = os.environ.get("SPARSIFY_KERNEL")
    try:
        table = library.kernels()
    except SparsifyError:
        return Check("kernel", False, "unknown without the library", "install the package again")
    supported = [name for name, here in table.items() if here]
    if forced is not None and forced not in supported:
        advice = f"set SPARSIFY_KERNEL to one of {', '.join(supported)}, or unset it"
        return Check("kernel", False, f"SPARSIFY_KERNEL is {forced!r}", advice)
    wished = os.environ.get("SPARSIFY_TUNE_FOR")
    if wished and library.tuning() != wished:
        advice = "set SPARSIFY_TUNE_FOR to skylake or sapphirerapids, or unset it"
        return Check("kernel", False, f"SPARSIFY_TUNE_FOR is {wished!r}", advice)
    caches = " and ".join(f"{library.tuned_cache(level) >> 10} KB" for level in (1, 2))
    detail = f"{library.selected_kernel()} of {', '.join(supported)}, tuned for {library.tuning()} ({caches})"
    detail += f", {library.available_cores()} cores"
    if forced is None and supported == ["scalar"]:
        return Check("kernel", True, detail, "this CPU has no vector kernels yet: expect no speedup")
    return Check("kernel", True, detail + (" (forced by SPARSIFY_KERNEL)" if forced else ""))


def _cuda(state: CudaState) -> Check:
    """Never a failure: models run on the CPU without any of this."""
    found = [
        f"driver {state.driver}" if state.driver else "no driver",
        state.device or (f"{state.devices} devices" if state.devices else "no device"),
        "kernels compiled" if state.kernels else "no compiled kernels",
        "provider in ONNX Runtime" if state.provider else "no provider in ONNX Runtime",
        f"nvcc {state.nvcc}" if state.nvcc else "no nvcc",
        f"triton {state.triton}" if state.triton else "no triton",
    ]
    end = "" if state.missing is None else ": models run on the CPU"
    return Check("cuda", True, ", ".join(found) + end, _cuda_advice(state))


def _cuda_advice(state: CudaState) -> str:
    advice = {
        "device": "",
        "driver": "",
        "kernels": "build the package where nvcc is (set CUDA_HOME)"
        if state.kernels is None
        else state.reason,
        "provider": "install onnxruntime-gpu instead of onnxruntime",
        "library": "install the package again",
    }
    return "" if state.missing is None else advice[state.missing]
