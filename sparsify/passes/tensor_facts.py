"""What the scaling table needs to know of every parameter, at the planned widths and densities."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch.fx
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from sparsify.graph.facts import Facts, LayerFacts
from sparsify.graph.traced import Traced
from sparsify.planning import Plan
from sparsify.scaling import TensorFacts
from sparsify.scaling.table import Role

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# A tied weight takes the first role: a readout that shares its table still needs its forward multiplier.
_PRECEDENCE: tuple[Role, ...] = ("readout", "hidden", "grouped", "depthwise", "input", "embedding")


def tensor_facts(traced: Traced, facts: Facts, plan: Plan) -> tuple[TensorFacts, ...]:
    """Returns one entry for every parameter of the rewritten model, ties counted once."""
    uses = _uses(facts, traced.ties)
    density = {layer.weight: layer.density for layer in plan.layers}
    base = {group.id: group.size for group in facts.groups}
    found = []
    for name, _ in traced.module.named_parameters():
        dims = facts.parameters[name]
        before = tuple(dim.evaluate(base) for dim in dims)
        after = tuple(dim.evaluate(plan.widths) for dim in dims)
        layer = _leading(uses.get(name, []))
        if layer is None:
            role = _other_role(traced.module, name)
            found.append(TensorFacts(name, role, 1, 1, prod(before), prod(after)))
            continue
        role = next(role for role in _PRECEDENCE if role == layer.role)
        fans = (*_fans(before, layer.kind == "embedding"), *_fans(after, layer.kind == "embedding"))
        in_base, out_base, fan_in, fan_out = fans
        behind = layer.batchnorm_follows
        found.append(
            TensorFacts(name, role, in_base, fan_in, out_base, fan_out, density.get(name, 1.0), behind)
        )
    return tuple(found)


def _uses(facts: Facts, ties: Sequence[Sequence[str]]) -> dict[str, list[LayerFacts]]:
    uses: dict[str, list[LayerFacts]] = {}
    names = {name: tie for tie in ties for name in tie}
    for layer in facts.layers:
        for name in names.get(layer.weight, (layer.weight,)):
            uses.setdefault(name, []).append(layer)
    return uses


def _leading(layers: Sequence[LayerFacts]) -> LayerFacts | None:
    ranked = [layer for role in _PRECEDENCE for layer in layers if layer.role == role]
    return ranked[0] if ranked else None


def _fans(shape: tuple[int, ...], table: bool) -> tuple[int, int]:
    """Fan-in and fan-out of a weight; an embedding's rows are its inputs."""
    if table:
        return shape[0], shape[1]
    return max(1, prod(shape[1:])), shape[0]


def _other_role(module: torch.fx.GraphModule, name: str) -> Role:
    path, _, leaf = name.rpartition(".")
    if isinstance(module.get_submodule(path), _NORMS):
        return "norm"
    return "bias" if leaf == "bias" else "free"
