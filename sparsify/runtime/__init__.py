"""Runs sparse ONNX models in ONNX Runtime. Loads no torch.

Names load lazily (PEP 562), so that importing this package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparsify.runtime.checks import doctor
    from sparsify.runtime.layer_bench import bench_layer
    from sparsify.runtime.library import library_path
    from sparsify.runtime.model_bench import bench
    from sparsify.runtime.session import Session

# No submodule bears the name of a public function: importing it would replace the function.
_LAZY = {
    "Session": "sparsify.runtime.session",
    "bench": "sparsify.runtime.model_bench",
    "bench_layer": "sparsify.runtime.layer_bench",
    "doctor": "sparsify.runtime.checks",
    "library_path": "sparsify.runtime.library",
}
__all__ = ["Session", "bench", "bench_layer", "doctor", "library_path"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sparsify.runtime' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
