"""What a measurement ran on; every report of times carries it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import onnxruntime

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library

_DISTRIBUTION = "sparsify-ift"


def cpu_model() -> str:
    """Name of the processor as its maker prints it, or the architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Logical CPUs that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version() -> str | None:
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """CPU, instruction sets, kernel in use, and versions; JSON-able."""
    try:
        flags, kernel = list(library.cpu_flags()), library.selected_kernel()
        tuning, caches = library.tuning(), [library.tuned_cache(level) for level in (1, 2)]
    except RuntimeLibraryError:
        flags, kernel, tuning, caches = [], None, None, []
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "flags": flags,
        "kernel": kernel,
        "tuned_for": tuning,
        "tuned_caches": caches,
        "onnxruntime": onnxruntime.__version__,
        "sparsify": _version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
