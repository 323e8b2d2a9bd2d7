"""Sparse models of the same FLOPs, from dense PyTorch models to sparse kernels in ONNX Runtime.

Names load lazily (PEP 562): importing `sparsify.runtime` or `sparsify.lowering` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "load": "sparsify.api",
    "save": "sparsify.api",
    "trace": "sparsify.api",
    "plan": "sparsify.api",
    "Plan": "sparsify.api",
    "transform": "sparsify.api",
    "param_groups": "sparsify.api",
    "finetune": "sparsify.api",
    "export": "sparsify.api",
    "narrow": "sparsify.api",
    "lower": "sparsify.lowering",
}
_SUBMODULES = ("dst", "errors", "runtime")

if TYPE_CHECKING:
    from sparsify.api import Plan, export, finetune, load, narrow, param_groups, plan, save, trace, transform
    from sparsify.lowering import lower

__version__ = "0.1.0"
__all__ = [
    "Plan",
    "export",
    "finetune",
    "load",
    "lower",
    "narrow",
    "param_groups",
    "plan",
    "save",
    "trace",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"sparsify.{name}")
    raise AttributeError(f"module 'sparsify' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
