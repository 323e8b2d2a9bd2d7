"""What there is of CUDA on this machine, as the operators' own library finds it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import shutil
from ctypes import c_char, c_int32
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library

PROVIDER = "CUDAExecutionProvider"
_STAGES = ("ready", "driver", "device", "kernels")


class _State(ctypes.Structure):
    """`sparsify_cuda_state` of the C ABI."""

    _fields_ = (
        ("stage", c_int32),
        ("driver_version", c_int32),
        ("devices", c_int32),
        ("multiprocessors", c_int32),
        ("device", c_char * 128),
        ("kernels", c_char * 512),
        ("message", c_char * 1024),
    )


@dataclass(frozen=True)
class CudaState:
    """What is there, and what is missing.

    Attributes:
        missing: What ends the way to a kernel on the first device: "library", "driver", "device" or
            "kernels"; "provider" where only ONNX Runtime's CUDA provider is missing; None where models run
            on the GPU.
        reason: Why, in a sentence; empty where nothing is missing.
        driver: Version of CUDA that the driver knows, such as "13.0"; None without a driver.
        devices: Number of devices.
        device: Name and architecture of the first, such as "NVIDIA H100 (sm_90)"; None without one that runs.
        kernels: File of the compiled kernels; None where there is none.
        provider: Whether ONNX Runtime has the CUDA provider.
        nvcc: Path of the compiler that builds the kernels; None where it is not found.
        triton: Version of Triton, whose kernels run in PyTorch; None where it is not installed.
    """

    missing: str | None
    reason: str
    driver: str | None
    devices: int
    device: str | None
    kernels: str | None
    provider: bool
    nvcc: str | None
    triton: str | None

    def to_dict(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)


def cuda_state() -> CudaState:
    """Looks for the driver, a device, compiled kernels, ONNX Runtime's provider, nvcc and Triton."""
    state = _probe()
    provider = PROVIDER in onnxruntime.get_available_providers()
    missing: str | None = "library"
    reason = "the native library is missing, or older than this package"
    if state is not None:
        missing, reason = _STAGES[state.stage], state.message.decode("utf-8", "replace")
        if missing == "ready":
            missing = None if provider else "provider"
            reason = "" if provider else "this ONNX Runtime has no CUDA provider: install onnxruntime-gpu"
    kernels = None if state is None else os.path.normpath(os.fsdecode(state.kernels))
    version = 0 if state is None else state.driver_version
    return CudaState(
        missing=missing,
        reason=reason,
        driver=f"{version // 1000}.{version % 1000 // 10}" if version else None,
        devices=0 if state is None else state.devices,
        device=state.device.decode("utf-8", "replace") or None if state is not None else None,
        kernels=kernels if kernels is not None and Path(kernels).is_file() else None,
        provider=provider,
        nvcc=_nvcc(),
        triton=_triton(),
    )


def _probe() -> _State | None:
    """None where the library is missing or does not have the function."""
    try:
        native = library.load()
    except RuntimeLibraryError:
        return None
    probe = getattr(native, "sparsify_cuda_probe", None)
    if probe is None:
        return None
    probe.restype = None
    probe.argtypes = (ctypes.POINTER(_State),)
    state = _State()
    probe(ctypes.byref(state))
    return state


def _nvcc() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [str(Path(home) / "bin") for home in (*homes, "/usr/local/cuda") if home]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))


def _triton() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None
