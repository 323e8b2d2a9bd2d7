"""Scaling with width and density: the SμPar table and the optimizer groups made from it."""

from __future__ import annotations

from sparsify.scaling.groups import param_groups, stored_scaling
from sparsify.scaling.table import Parameterization, Role, Scaling, TensorFacts, TensorScale, scaling_table

__all__ = [
    "Parameterization",
    "Role",
    "Scaling",
    "TensorFacts",
    "TensorScale",
    "param_groups",
    "scaling_table",
    "stored_scaling",
]
