"""What the plan of a model says about its masked parameters: counts, costs, and which one is the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from sparsify.masks import MaskedParameter, unwrapped
from sparsify.planning import Plan
from sparsify.planning.schema import PlanLayer, PlanTensor


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a model was made by; wrappers are looked through."""
    record: Any = getattr(unwrapped(model), "meta", {}).get("sparsify")
    plan = getattr(record, "plan", None)
    return plan if isinstance(plan, Plan) else None


def planned_counts(model: nn.Module, entries: Mapping[str, MaskedParameter]) -> dict[str, int]:
    """Planned active weights by fqn, of those entries that the plan masks."""
    return {fqn: tensor.nnz for fqn, _, tensor in _planned(model, entries)}


def flops_per_weight(model: nn.Module, entries: Mapping[str, MaskedParameter]) -> dict[str, float]:
    """FLOPs that one active weight costs, by fqn, of those entries that the plan masks.

    A weight that several layers share costs the sum.
    """
    costs: dict[str, float] = {}
    for fqn, layer, _ in _planned(model, entries):
        costs[fqn] = costs.get(fqn, 0.0) + layer.flops / max(1, layer.nnz)
    return costs


def readouts(model: nn.Module, entries: Mapping[str, MaskedParameter]) -> frozenset[str]:
    """Masked parameters of the output layer: by the plan's roles, or else the last one of the model."""
    plan = plan_of(model)
    if plan is not None and any(layer.role == "readout" for layer in plan.layers):
        return frozenset(fqn for fqn, layer, _ in _planned(model, entries) if layer.role == "readout")
    return frozenset(list(entries)[-1:])


def _planned(
    model: nn.Module, entries: Mapping[str, MaskedParameter]
) -> Iterator[tuple[str, PlanLayer, PlanTensor]]:
    """Yields (fqn in `entries`, layer, tensor) for every tensor that the plan masks, ties resolved."""
    plan = plan_of(model)
    if plan is None:
        return
    parameters = dict(unwrapped(model).named_parameters(remove_duplicate=False))
    known = {id(entry.param): fqn for fqn, entry in entries.items()}
    for layer in plan.layers:
        for tensor in layer.tensors if layer.masked else ():
            fqn = known.get(id(parameters.get(tensor.fqn)))
            if tensor.masked and fqn is not None:
                yield fqn, layer, tensor
