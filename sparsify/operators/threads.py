"""The threads of the native kernels: those of torch's own OpenMP pool."""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch

from sparsify.runtime import training

_NAMES = {"linux": "libtorch_global_deps.so", "darwin": "libomp.dylib"}


def thread_count() -> int:
    """Threads of an operator, once the kernels share torch's pool."""
    _share_pool()
    return torch.get_num_threads()


@functools.cache
def _share_pool() -> None:
    """Hands torch's `GOMP_parallel` to the native library.

    The threads of an OpenMP pool spin for a while after each region, so those of a second pool would have to
    share cores with them. Where torch has no such function (Windows), the library starts threads of its own.
    """
    training.use_openmp(_gomp_parallel())


def _gomp_parallel() -> int | None:
    name = _NAMES.get(sys.platform)
    if name is None:
        return None
    try:
        function = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value
