"""Decides, before anything is rewritten, what becomes of every layer, and why."""

from __future__ import annotations

from sparsify.planning.fit import fingerprint, fit
from sparsify.planning.planner import plan, plan_from_facts
from sparsify.planning.schema import (
    Plan,
    PlanFlops,
    PlanGroup,
    PlanLayer,
    PlanOptions,
    PlanTensor,
)
from sparsify.planning.table import COLUMNS, rows

__all__ = [
    "COLUMNS",
    "Plan",
    "PlanFlops",
    "PlanGroup",
    "PlanLayer",
    "PlanOptions",
    "PlanTensor",
    "fingerprint",
    "fit",
    "plan",
    "plan_from_facts",
    "rows",
]
