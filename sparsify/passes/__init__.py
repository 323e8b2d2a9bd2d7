"""Rewrites a traced model by a plan: one pass a file, the order in `pipeline`; docs/writing_a_pass.md."""

from __future__ import annotations

from sparsify.passes.contract import Context, Pass, PassResult, mark
from sparsify.passes.pipeline import PIPELINE, Observer, rewrite
from sparsify.passes.record import ParameterMapping, Record, parameter_map

__all__ = [
    "PIPELINE",
    "Context",
    "Observer",
    "ParameterMapping",
    "Pass",
    "PassResult",
    "Record",
    "mark",
    "parameter_map",
    "rewrite",
]
