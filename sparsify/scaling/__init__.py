"""Scaling with width and density: the SμPar table and the optimizer groups made from it."""

from __future__ import annotations

from sparsify.scaling.base import Base
from sparsify.scaling.groups import param_groups, stored_scaling
from sparsify.scaling.table import (
    AttentionScale,
    Parameterization,
    Role,
    Scaling,
    TensorFacts,
    TensorScale,
    scaling_table,
)

__all__ = [
    "AttentionScale",
    "Base",
    "Parameterization",
    "Role",
    "Scaling",
    "TensorFacts",
    "TensorScale",
    "param_groups",
    "scaling_table",
    "stored_scaling",
]
