"""Sparse training algorithms: construct one on a model and its optimizer, then train as ever."""

from __future__ import annotations

from sparsify.dst.base import Algorithm
from sparsify.dst.rigl import RigL
from sparsify.dst.static import Static

__all__ = ["Algorithm", "RigL", "Static"]
