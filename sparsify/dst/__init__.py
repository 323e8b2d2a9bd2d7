"""Sparse training algorithms: construct one on a model and its optimizer, then train as ever."""

from __future__ import annotations

from sparsify.dst.base import Algorithm
from sparsify.dst.gmp import GMP
from sparsify.dst.methods import METHODS, make, method_options
from sparsify.dst.rigl import RigL
from sparsify.dst.set import SET
from sparsify.dst.sparse_momentum import SparseMomentum
from sparsify.dst.srigl import SRigL
from sparsify.dst.static import Static

__all__ = [
    "GMP",
    "METHODS",
    "SET",
    "Algorithm",
    "RigL",
    "SRigL",
    "SparseMomentum",
    "Static",
    "make",
    "method_options",
]
