"""Writes down as a plan what every weight becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from sparsify.errors import Refusal
from sparsify.graph.facts import LayerFacts
from sparsify.planning.cost import Cost, Weight
from sparsify.planning.families import Parts, dense, masked
from sparsify.planning.fingerprint import fingerprint
from sparsify.planning.schema import Plan, PlanFlops, PlanGroup, PlanLayer, PlanOptions


def assemble(
    cost: Cost,
    options: PlanOptions,
    widths: dict[str, int],
    parts: Mapping[str, Parts],
    refusals: tuple[Refusal, ...],
    example: tuple[tuple[int, ...], ...],
) -> Plan:
    """Builds the plan for chosen widths and parts (by weight; what is not named stays dense)."""
    facts = cost.facts
    why = {refusal.fqn: refusal.reason for refusal in refusals}
    owner = {id(layer): weight for weight in (*cost.masked, *cost.dense) for layer in weight.layers}
    layers = []
    for layer in facts.layers:
        weight = owner[id(layer)]
        made = parts.get(weight.fqn) or dense(weight.fqn, weight.shape(widths))
        layers.append(_layer(cost, layer, weight, widths, made, why))
    groups = tuple(
        PlanGroup(g.id, g.size, widths[g.id], g.granularity, g.residual, g.pinned, g.members)
        for g in facts.groups
    )
    flops = PlanFlops(cost.budget, total_flops(cost, widths, parts))
    return Plan(fingerprint(facts), example, options, flops, groups, tuple(layers), refusals)


def total_flops(cost: Cost, widths: Mapping[str, int], parts: Mapping[str, Parts]) -> int:
    """FLOPs of the model: every tensor of a layer costs as much a weight as the layer's dense one."""
    total = float(cost.facts.other_flops.evaluate(widths))
    for weight in (*cost.masked, *cost.dense):
        made = parts.get(weight.fqn)
        share = 1.0 if made is None else made.kept / weight.size(widths)
        total += weight.flops(widths) * share
    return round(total)


def masked_parts(cost: Cost, family: str, widths: dict[str, int], counts: Sequence[int]) -> dict[str, Parts]:
    """What the masked weights become, for counts of kept weights (one a masked weight)."""
    made = {}
    for weight, count in zip(cost.masked, counts, strict=True):
        reason = _masked_reason(sorted(weight.symbols), widths, cost.base)
        made[weight.fqn] = masked(family, weight.fqn, weight.shape(widths), count, reason)
    return made


def _layer(
    cost: Cost,
    layer: LayerFacts,
    weight: Weight,
    widths: dict[str, int],
    made: Parts,
    why: Mapping[str, str],
) -> PlanLayer:
    base = cost.base
    shape = tuple(dim.evaluate(widths) for dim in layer.dims)
    dense_shape = tuple(dim.evaluate(base) for dim in layer.dims)
    axis = 1 if layer.kind == "embedding" else 0
    return PlanLayer(
        fqn=layer.fqn,
        kind=layer.kind,
        role=layer.role,
        family=made.family,
        density=made.density,
        width=shape[axis] / dense_shape[axis],
        flops=round(layer.flops.evaluate(widths) * (made.kept / prod(shape))),
        dense_flops=layer.flops.evaluate(base),
        weight=weight.fqn,
        shape=shape,
        dense_shape=dense_shape,
        nnz=made.kept,
        groups=tuple(sorted({symbol for dim in layer.dims for symbol in dim.symbols})),
        reason=made.reason or why.get(layer.fqn, "dense model"),
        branches=made.branches,
        rank=made.rank,
        nonlinearity=made.nonlinearity,
        tensors=made.tensors,
    )


def _masked_reason(touched: Sequence[str], widths: dict[str, int], base: dict[str, int]) -> str:
    grown = [f"{name} {base[name]}→{widths[name]}" for name in touched if widths[name] != base[name]]
    return f"hidden; widens {', '.join(grown)}" if grown else "hidden; masked at its own shape"
