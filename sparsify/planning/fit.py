"""Fits a plan to a model: checks it, and derives anew whatever follows from widths and densities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sparsify.errors import InvalidPlanError
from sparsify.graph.facts import Facts
from sparsify.planning.assemble import assemble
from sparsify.planning.cost import Cost, weights_of
from sparsify.planning.fingerprint import fingerprint
from sparsify.planning.schema import Plan, PlanLayer

__all__ = ["fingerprint", "fit"]


def fit(plan: Plan, facts: Facts, *, ties: Iterable[Sequence[str]] = ()) -> Plan:
    """Checks that a plan fits a model and recomputes shapes, counts and FLOPs from its two inputs.

    Widths come from `plan.groups`, densities from `plan.layers`; both are taken as they are, so an edited
    plan may leave the budget, and `flops.ratio` says by how much. A plan that was not edited comes back
    equal.

    Raises:
        InvalidPlanError: The plan names other layers or groups than the model has, changes a pinned width, or
            holds a width or density out of range; the message names the layer or group.
    """
    _check_groups(plan, facts)
    densities = _check_layers(plan, facts)
    if plan.model != fingerprint(facts):
        raise InvalidPlanError(
            f"key 'model': the plan was made for a model with fingerprint {plan.model}, this one has "
            f"{fingerprint(facts)}; some shape or coupling differs, make the plan anew"
        )
    weights = weights_of(facts, ties)
    by_weight = {}
    for weight in weights:
        own = {layer.fqn: densities[layer.fqn] for layer in weight.layers}
        if len(set(own.values())) > 1:
            raise InvalidPlanError(f"layers {', '.join(own)} share one weight but have different densities")
        by_weight[weight.fqn] = next(iter(own.values()))
    masked = tuple(weight for weight in weights if by_weight[weight.fqn] is not None)
    dense = tuple(weight for weight in weights if by_weight[weight.fqn] is None)
    widths = plan.widths
    cost = Cost(facts, masked, dense, frozenset(name for name, size in _sizes(facts) if widths[name] != size))
    counts = []
    for weight, size in zip(masked, cost.sizes(widths), strict=True):
        counts.append(max(1, min(round(size), round(float(by_weight[weight.fqn] or 0) * size))))
    fitted = assemble(cost, plan.options, widths, counts, plan.refusals, plan.example)
    reasons = {layer.fqn: layer.reason for layer in plan.layers}
    families = {layer.fqn: layer.family for layer in plan.layers}
    layers = tuple(
        replace(layer, reason=reasons[layer.fqn]) if layer.family == families[layer.fqn] else layer
        for layer in fitted.layers
    )
    return replace(fitted, layers=layers, version=plan.version)


def _sizes(facts: Facts) -> list[tuple[str, int]]:
    return [(group.id, group.size) for group in facts.groups]


def _check_groups(plan: Plan, facts: Facts) -> None:
    known = {group.id: group for group in facts.groups}
    seen = _unique("groups", [group.id for group in plan.groups])
    _same_names("groups", seen, list(known))
    for group in plan.groups:
        fact = known[group.id]
        where = f"groups ({group.id})"
        if group.size != fact.size:
            raise InvalidPlanError(f"{where}.size: the plan says {group.size}, the model {fact.size}")
        if group.width < 1:
            raise InvalidPlanError(f"{where}.width: must be at least 1, not {group.width}")
        if fact.pinned is not None and group.width != fact.size:
            raise InvalidPlanError(
                f"{where}.width: this width must stay {fact.size} ({fact.pinned}), not {group.width}"
            )


def _check_layers(plan: Plan, facts: Facts) -> dict[str, float | None]:
    """Returns the density of every masked layer, None for the others."""
    names = _unique("layers", [layer.fqn for layer in plan.layers])
    _same_names("layers", names, [layer.fqn for layer in facts.layers])
    kinds = {layer.fqn: layer.kind for layer in facts.layers}
    return {layer.fqn: _density(layer, kinds[layer.fqn]) for layer in plan.layers}


def _density(layer: PlanLayer, kind: str) -> float | None:
    where = f"layers ({layer.fqn})"
    if layer.family not in ("dense", "wide", "masked"):
        raise InvalidPlanError(f"{where}.family: expected dense, wide or masked, found {layer.family!r}")
    if not 0 < layer.density <= 1:
        raise InvalidPlanError(f"{where}.density: must be in (0, 1], not {layer.density}")
    if layer.density == 1 and layer.family == "dense":
        return None
    if kind == "embedding":
        raise InvalidPlanError(f"{where}.density: an embedding cannot be masked")
    return layer.density


def _unique(key: str, names: list[str]) -> list[str]:
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise InvalidPlanError(f"{key} ({twice}): listed twice")
    return names


def _same_names(key: str, found: list[str], expected: list[str]) -> None:
    extra = next((name for name in found if name not in set(expected)), None)
    if extra is not None:
        raise InvalidPlanError(
            f"{key} ({extra}): the model has none of that name; is the plan another model's?"
        )
    missing = next((name for name in expected if name not in set(found)), None)
    if missing is not None:
        raise InvalidPlanError(f"{key} ({missing}): missing from the plan")
