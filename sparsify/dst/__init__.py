"""Sparse training algorithms: construct one on a model and its optimizer, then train as ever."""

from __future__ import annotations

from sparsify.dst.base import Algorithm
from sparsify.dst.gmp import GMP
from sparsify.dst.group_choice import find_groups
from sparsify.dst.group_lasso import GroupLasso
from sparsify.dst.group_silence import silence_idle_units
from sparsify.dst.groups import Groups
from sparsify.dst.methods import METHODS, make, method_options
from sparsify.dst.rigl import RigL
from sparsify.dst.set import SET
from sparsify.dst.sparse_momentum import SparseMomentum
from sparsify.dst.srigl import SRigL
from sparsify.dst.static import Static
from sparsify.dst.wgsef import WGSEF

__all__ = [
    "GMP",
    "METHODS",
    "SET",
    "WGSEF",
    "Algorithm",
    "GroupLasso",
    "Groups",
    "RigL",
    "SRigL",
    "SparseMomentum",
    "Static",
    "find_groups",
    "make",
    "method_options",
    "silence_idle_units",
]
