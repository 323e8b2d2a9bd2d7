"""torch → ONNX: plain ONNX with zeros in place, lowered where sparse operators are faster."""

from __future__ import annotations

from sparsify.onnx_export.writer import export

__all__ = ["export"]
