"""Sparse models of the same FLOPs, from dense PyTorch models to sparse kernels in ONNX Runtime.

Names load lazily (PEP 562): importing `sparsify.runtime` or `sparsify.lowering` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "load": "sparsify.api",
    "save": "sparsify.api",
    "save_base": "sparsify.api",
    "Base": "sparsify.api",
    "trace": "sparsify.api",
    "plan": "sparsify.api",
    "Plan": "sparsify.api",
    "transform": "sparsify.api",
    "param_groups": "sparsify.api",
    "finetune": "sparsify.api",
    "export": "sparsify.api",
    "narrow": "sparsify.api",
    "load_dense": "sparsify.api",
    "dense_state_dict": "sparsify.api",
    "explain": "sparsify.api",
    "merge_delta": "sparsify.train",
    "accelerate": "sparsify.operators",
    "acceleration_report": "sparsify.operators",
    "decelerate": "sparsify.operators",
    "coord_check": "sparsify.studies",
    "sweep": "sparsify.studies",
    "lower": "sparsify.lowering",
    "what_if": "sparsify.lowering",
}
_SUBMODULES = ("dst", "errors", "passes", "runtime")

if TYPE_CHECKING:
    from sparsify.api import (
        Base,
        Plan,
        dense_state_dict,
        explain,
        export,
        finetune,
        load,
        load_dense,
        narrow,
        param_groups,
        plan,
        save,
        save_base,
        trace,
        transform,
    )
    from sparsify.lowering import lower, what_if
    from sparsify.operators import accelerate, acceleration_report, decelerate
    from sparsify.studies import coord_check, sweep
    from sparsify.train import merge_delta

__version__ = "0.1.0"
__all__ = [
    "Base",
    "Plan",
    "accelerate",
    "acceleration_report",
    "coord_check",
    "decelerate",
    "dense_state_dict",
    "explain",
    "export",
    "finetune",
    "load",
    "load_dense",
    "lower",
    "merge_delta",
    "narrow",
    "param_groups",
    "plan",
    "save",
    "save_base",
    "sweep",
    "trace",
    "transform",
    "what_if",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"sparsify.{name}")
    raise AttributeError(f"module 'sparsify' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
