"""Finds and loads the native library.

`SPARSIFY_LIBRARY` names a library file to use instead of the installed one.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

from sparsify.errors import RuntimeLibraryError

ABI_VERSION = 5
ENVIRONMENT_VARIABLE = "SPARSIFY_LIBRARY"
_ADVICE = "install the package with `pip install .` (this needs a C++17 compiler), or set SPARSIFY_LIBRARY"


class Tensor(ctypes.Structure):
    """`sparsify_tensor` of the C ABI: a flat array; `type` is ONNX's number of its element type."""

    _fields_ = (("data", c_void_p), ("type", c_int32), ("reserved", c_int32), ("size", c_int64))


class ConvAttributes(ctypes.Structure):
    """`sparsify_conv_attributes` of the C ABI."""

    _fields_ = (
        ("out_channels", c_int64),
        ("in_channels", c_int64),
        ("kernel", c_int64 * 2),
        ("strides", c_int64 * 2),
        ("pads", c_int64 * 4),
        ("dilations", c_int64 * 2),
    )


class RunOptions(ctypes.Structure):
    """`sparsify_run_options` of the C ABI; null pointers mean absent."""

    _fields_ = (
        ("bias", c_void_p),
        ("residual", c_void_p),
        ("activation", c_int32),
        ("threads", c_int32),
        ("low", c_float),
        ("high", c_float),
    )


_HANDLE = POINTER(c_void_p)
_FLOATS = POINTER(c_float)
_SIZES = POINTER(c_int64)
_TENSORS = POINTER(Tensor)
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "abi_version": (c_int32, ()),
    "last_error": (c_char_p, ()),
    "cpu_flags": (c_char_p, ()),
    "tuning": (c_char_p, ()),
    "tuned_cache": (c_int64, (c_int32,)),
    "tuned_deep": (c_int32, ()),
    "count_cores": (c_int32, (c_char_p, POINTER(c_int32), c_int32)),
    "available_cores": (c_int32, ()),
    "kernel_count": (c_int32, ()),
    "kernel_name": (c_char_p, (c_int32,)),
    "kernel_supported": (c_int32, (c_int32,)),
    "pack": (c_int32, (c_char_p, c_void_p, c_int64, c_int64, c_int32, _HANDLE)),
    "packed_count": (c_int32, (c_void_p,)),
    "packed_tensor": (Tensor, (c_void_p, c_int32)),
    "packed_free": (None, (c_void_p,)),
    "unpack": (c_int32, (c_char_p, _TENSORS, c_int32, c_int64, c_int64, c_void_p)),
    "linear_create": (c_int32, (c_char_p, c_char_p, c_int64, c_int64, _TENSORS, c_int32, _HANDLE)),
    "linear_run": (c_int32, (c_void_p, c_void_p, c_int64, POINTER(RunOptions), c_void_p)),
    "linear_free": (None, (c_void_p,)),
    "conv_create": (
        c_int32,
        (c_char_p, c_char_p, POINTER(ConvAttributes), _TENSORS, c_int32, _HANDLE),
    ),
    "conv_output_size": (c_int32, (c_void_p, c_int64, c_int64, _SIZES, _SIZES)),
    "conv_run": (
        c_int32,
        (c_void_p, c_void_p, c_int64, c_int64, c_int64, POINTER(RunOptions), c_void_p),
    ),
    "conv_free": (None, (c_void_p,)),
}


def _file_name() -> str:
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    return f"libsparsify_ort{suffix}"


def library_path() -> Path:
    """Path of the native library, to hand to `SessionOptions.register_custom_ops_library`.

    Raises:
        RuntimeLibraryError: There is no such file.
    """
    override = os.environ.get(ENVIRONMENT_VARIABLE)
    if override:
        if not Path(override).is_file():
            raise RuntimeLibraryError(f"{ENVIRONMENT_VARIABLE} is {override!r}, and there is no such file")
        return Path(override).resolve()
    import sparsify.runtime

    # An editable install spreads the package over two folders: sources here, the built library there.
    candidates = [Path(folder) / "lib" / _file_name() for folder in sparsify.runtime.__path__]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    places = ", ".join(str(candidate) for candidate in candidates)
    raise RuntimeLibraryError(f"the native library is not installed (looked for {places}): {_ADVICE}")


def load() -> ctypes.CDLL:
    """The native library with every function's signature declared; loaded once.

    Raises:
        RuntimeLibraryError: It is missing, does not load, or belongs to another version of the package.
    """
    return _load(library_path())


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeLibraryError(f"cannot load the native library {path} ({error}): {_ADVICE}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, f"sparsify_{name}", None)
        if function is None:
            raise RuntimeLibraryError(f"{path} lacks sparsify_{name}, so it is of another version: {_ADVICE}")
        function.restype = result
        function.argtypes = arguments
    version = library.sparsify_abi_version()
    if version != ABI_VERSION:
        raise RuntimeLibraryError(
            f"{path} has version {version} of the C ABI, but this package needs {ABI_VERSION}: {_ADVICE}"
        )
    return library


def last_error(library: ctypes.CDLL) -> str:
    """What went wrong in this thread's latest call that returned non-zero."""
    message: bytes | None = library.sparsify_last_error()
    return (message or b"unknown error").decode("utf-8", "replace")


def cpu_flags() -> tuple[str, ...]:
    """Instruction-set flags that the native library sees on this CPU."""
    return tuple(load().sparsify_cpu_flags().decode().split())


def tuning() -> str:
    """What kernels are tuned for: `SPARSIFY_TUNE_FOR` when this process first asked, or `this CPU`."""
    return str(load().sparsify_tuning().decode())


def tuned_cache(level: int) -> int:
    """Bytes of a core's data cache of this level, 1 or 2, as far as kernels use them."""
    return int(load().sparsify_tuned_cache(level))


def tuned_deep() -> bool:
    """Whether kernels take this CPU for one that looks far ahead by itself (Ice Lake, Zen 4 and later)."""
    return bool(load().sparsify_tuned_deep())


def available_cores() -> int:
    """Cores that this process may run on: what operators take for a session's threads if it does not say."""
    return int(load().sparsify_available_cores())


def kernels() -> dict[str, bool]:
    """Every instruction set of the kernel table, best last, and whether this CPU runs it."""
    library = load()
    return {
        library.sparsify_kernel_name(i).decode(): bool(library.sparsify_kernel_supported(i))
        for i in range(library.sparsify_kernel_count())
    }


def selected_kernel() -> str:
    """The instruction set that a new kernel uses: `SPARSIFY_KERNEL`, else the best one of this CPU."""
    forced = os.environ.get("SPARSIFY_KERNEL")
    return forced or [name for name, supported in kernels().items() if supported][-1]
