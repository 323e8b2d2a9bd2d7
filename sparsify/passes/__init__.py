"""Rewrites a traced model by a plan: one pass a file, the order in `pipeline`."""

from __future__ import annotations

from sparsify.passes.contract import Context, Pass, PassResult
from sparsify.passes.pipeline import PIPELINE, rewrite
from sparsify.passes.record import ParameterMapping, Record, parameter_map

__all__ = [
    "PIPELINE",
    "Context",
    "ParameterMapping",
    "Pass",
    "PassResult",
    "Record",
    "parameter_map",
    "rewrite",
]
