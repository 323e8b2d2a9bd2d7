"""ONNX → ONNX: replaces nodes with zeros in their weights by sparse operators. Loads no torch."""

from __future__ import annotations

from sparsify.lowering.contents import describe
from sparsify.lowering.imposed_sparsity import what_if
from sparsify.lowering.pipeline import lower
from sparsify.lowering.report import LayerReport, LowerReport, NodeCounts, WhatIf

__all__ = ["LayerReport", "LowerReport", "NodeCounts", "WhatIf", "describe", "lower", "what_if"]
