"""Where one parameter comes from, or what became of it, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from sparsify.errors import UserError
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import masked_parameters
from sparsify.passes.record import ParameterMapping, Record
from sparsify.planning import Plan
from sparsify.planning.schema import PlanLayer


def explain(model: nn.Module, fqn: str) -> dict[str, Any]:
    """Origin of a parameter of the rewritten model, or what became of one of the dense model.

    Args:
        model: From `transform` or `load`.
        fqn: A parameter of either model, or a module, whose parameters are then all explained.

    Returns:
        Plain data: `fqn` as asked for, and `parameters`, one entry for each parameter of the rewritten model:
        `new` and `old` name, `how` the one became the other, `transposed`, `shape` of both, `mask` (active
        entries and density, or None), `groups` (width of every dimension that may change), `scaling`
        (learning-rate, initial and forward factors), `plan` (family, reason and numbers of its layer), `ties`
        and `refusals`.

    Raises:
        UserError: Neither model has such a parameter; near matches are named.
    """
    record = model.sparsify if isinstance(model, SparseGraphModule) else None
    if not isinstance(record, Record):
        raise UserError(
            f"a {type(model).__name__} has no record of where its parameters come from; take a model from "
            "sparsify.transform or sparsify.load"
        )
    entries = _entries(record, fqn)
    if not entries:
        names = dict.fromkeys(name for entry in record.parameter_map for name in (entry.new, entry.old))
        near = get_close_matches(fqn, names, n=3, cutoff=0.4)
        hint = f"; near matches: {', '.join(near)}" if near else ""
        raise UserError(f"neither the model nor the one it came from has a parameter {fqn!r}{hint}")
    return {"fqn": fqn, "parameters": [_explained(model, record, entry) for entry in entries]}


def _entries(record: Record, fqn: str) -> list[ParameterMapping]:
    found = [entry for entry in record.parameter_map if fqn in (entry.new, entry.old)]
    if found:
        return found
    inside = f"{fqn}."
    return [e for e in record.parameter_map if e.new.startswith(inside) or e.old.startswith(inside)]


def _explained(model: nn.Module, record: Record, entry: ParameterMapping) -> dict[str, Any]:
    parameter = dict(model.named_parameters(remove_duplicate=False)).get(entry.new)
    dense = next((tensor for tensor in record.dense if tensor.key == entry.old), None)
    names = next((tie for tie in record.ties if entry.new in tie), (entry.new,))
    scaling = record.scaling
    scale = None if scaling is None else next((asdict(scaling[n]) for n in names if n in scaling), None)
    layer = None if record.plan is None else _layer(record.plan, entry, None if dense is None else dense.name)
    refusals = () if record.plan is None else record.plan.refusals
    owner = entry.new.rpartition(".")[0]
    return {
        "new": entry.new,
        "old": entry.old,
        "how": entry.how,
        "transposed": entry.transposed,
        "shape": {
            "old": None if dense is None or entry.how == "added" else list(dense.shape),
            "new": None if parameter is None else list(parameter.shape),
        },
        "mask": _mask(model, names),
        "groups": [] if record.plan is None or dense is None else _groups(record.plan, dense.name),
        "scaling": scale,
        "plan": None if layer is None else _planned(layer),
        "ties": [name for name in names if name != entry.new],
        "refusals": [asdict(one) for one in refusals if one.fqn in (owner, entry.new, entry.old)],
    }


def _layer(plan: Plan, entry: ParameterMapping, dense: str | None) -> PlanLayer | None:
    """The planned layer that a parameter belongs to: by its tensors, its weight, or its module."""
    path = entry.new.rpartition(".")[0]
    for layer in plan.layers:
        if layer.weight == dense or any(tensor.fqn == entry.new for tensor in layer.tensors):
            return layer
    inside = (layer for layer in plan.layers if path == layer.fqn or path.startswith(f"{layer.fqn}."))
    return next(inside, None)


def _planned(layer: PlanLayer) -> dict[str, Any]:
    return {
        "layer": layer.fqn,
        "role": layer.role,
        "family": layer.family,
        "density": layer.density,
        "width": layer.width,
        "branches": layer.branches,
        "rank": layer.rank,
        "nonlinearity": layer.nonlinearity,
        "reason": layer.reason,
    }


def _mask(model: nn.Module, names: Iterable[str]) -> dict[str, Any] | None:
    masks = masked_parameters(model)
    entry = next((masks[name] for name in names if name in masks), None)
    if entry is None:
        return None
    if entry.mask.is_meta:
        return {"active": None, "density": None}
    return {"active": int(torch.count_nonzero(entry.mask)), "density": entry.density}


def _groups(plan: Plan, name: str) -> list[dict[str, Any]]:
    """Width groups of a tensor's dimensions."""
    found = []
    for group in plan.groups:
        for member in group.members:
            if member.rpartition("[")[0] == name:
                axis = int(member.rpartition("[")[2][:-1])
                found.append(
                    {
                        "axis": axis,
                        "id": group.id,
                        "size": group.size,
                        "width": group.width,
                        "granularity": group.granularity,
                        "residual": group.residual,
                        "pinned": group.pinned,
                    }
                )
    return sorted(found, key=lambda row: int(row["axis"]))
