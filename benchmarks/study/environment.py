"""What a result depends on besides its settings: versions, the machine, the revision of the package."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsify

_VECTOR_FLAGS = ("sse4_2", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def revision() -> str:
    """The commit of the imported package, with `-changed` where its files differ; else its version."""
    folder = Path(sparsify.__file__).parent
    commit = _git(folder, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return metadata.version("sparsify-ift")
    return commit + ("-changed" if _git(folder, "status", "--porcelain", "--", ".") else "")


def environment() -> dict[str, Any]:
    """Versions and the machine, as JSON values."""
    model, flags = _processor()
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "system": platform.system(),
        "processor": model,
        "vector_flags": [flag for flag in _VECTOR_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "threads_of_a_run": 1,
        "revision_of_the_report": revision(),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> tuple[str, set[str]]:
    """Name and flags as Linux tells them; what Python knows, elsewhere."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor() or platform.machine(), set()
    found: dict[str, str] = {}
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    flags = found.get("flags", found.get("Features", ""))
    return found.get("model name", platform.machine()), set(flags.split())
