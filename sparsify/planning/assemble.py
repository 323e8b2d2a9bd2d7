"""Writes a solved budget down as a plan."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from sparsify.errors import Refusal
from sparsify.graph.facts import LayerFacts
from sparsify.planning.budget import total_flops
from sparsify.planning.cost import Cost, Weight
from sparsify.planning.fingerprint import fingerprint
from sparsify.planning.schema import (
    Plan,
    PlanFlops,
    PlanGroup,
    PlanLayer,
    PlanOptions,
    PlanTensor,
)


def assemble(
    cost: Cost,
    options: PlanOptions,
    widths: dict[str, int],
    counts: Sequence[int],
    refusals: tuple[Refusal, ...],
    example: tuple[tuple[int, ...], ...],
) -> Plan:
    """Builds the plan for chosen widths and counts of kept weights (one a masked weight)."""
    facts = cost.facts
    kept = {weight.fqn: count for weight, count in zip(cost.masked, counts, strict=True)}
    owner = {layer.fqn: weight for weight in (*cost.masked, *cost.dense) for layer in weight.layers}
    why = {refusal.fqn: refusal.reason for refusal in refusals}
    family = options.family
    layers = tuple(
        _layer(cost, layer, owner[layer.fqn], widths, kept.get(owner[layer.fqn].fqn), family, why)
        for layer in facts.layers
    )
    groups = tuple(
        PlanGroup(g.id, g.size, widths[g.id], g.granularity, g.residual, g.pinned, g.members)
        for g in facts.groups
    )
    flops = PlanFlops(cost.budget, total_flops(cost, widths, counts))
    return Plan(fingerprint(facts), example, options, flops, groups, layers, refusals)


def _layer(
    cost: Cost,
    layer: LayerFacts,
    weight: Weight,
    widths: dict[str, int],
    nnz: int | None,
    family: str,
    why: dict[str, str],
) -> PlanLayer:
    base = cost.base
    shape = tuple(dim.evaluate(widths) for dim in layer.dims)
    dense_shape = tuple(dim.evaluate(base) for dim in layer.dims)
    axis = 1 if layer.kind == "embedding" else 0
    count = prod(shape) if nnz is None else nnz
    touched = tuple(sorted({symbol for dim in layer.dims for symbol in dim.symbols}))
    reason = why.get(layer.fqn, "dense model") if nnz is None else _masked_reason(touched, widths, base)
    return PlanLayer(
        fqn=layer.fqn,
        kind=layer.kind,
        role=layer.role,
        family="dense" if nnz is None else family,
        density=count / prod(shape),
        width=shape[axis] / dense_shape[axis],
        flops=round(layer.flops.evaluate(widths) * count / prod(shape)),
        dense_flops=layer.flops.evaluate(base),
        weight=weight.fqn,
        shape=shape,
        dense_shape=dense_shape,
        nnz=count,
        groups=touched,
        reason=reason,
        tensors=(PlanTensor(weight.fqn, "weight", shape, count, nnz is not None),),
    )


def _masked_reason(touched: tuple[str, ...], widths: dict[str, int], base: dict[str, int]) -> str:
    grown = [f"{name} {base[name]}→{widths[name]}" for name in touched if widths[name] != base[name]]
    return f"hidden; widens {', '.join(grown)}" if grown else "hidden; masked at its own shape"
