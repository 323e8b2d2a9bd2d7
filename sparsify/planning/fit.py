"""Fits a plan to a model: checks it, and derives anew whatever follows from its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sparsify.errors import InvalidPlanError, UserError
from sparsify.graph.facts import Facts
from sparsify.pattern_rules import parse_rule
from sparsify.planning.assemble import assemble
from sparsify.planning.cost import Cost, weights_of
from sparsify.planning.drop_in import Surroundings
from sparsify.planning.edits import part_of
from sparsify.planning.families import Parts
from sparsify.planning.fingerprint import fingerprint
from sparsify.planning.schema import Plan, PlanLayer

__all__ = ["fingerprint", "fit"]


def fit(plan: Plan, facts: Facts, *, ties: Iterable[Sequence[str]] = ()) -> Plan:
    """Checks that a plan fits a model and recomputes shapes, counts and FLOPs from its inputs.

    Widths come from `plan.groups`; family, density, branches, rank and nonlinearity from `plan.layers`. They
    are taken as they are, so an edited plan may leave the budget, and `flops.ratio` says by how much; a layer
    whose family was edited gets the numbers at which it keeps its FLOPs, but for those edited with it. A plan
    that was not edited comes back equal.

    Raises:
        InvalidPlanError: The plan names other layers or groups than the model has, changes a pinned width, or
            holds a value out of range, or one that does not go with the layer's family; the message names the
            layer or group and the key.
    """
    _check_pattern(plan)
    _check_groups(plan, facts)
    _same_names("layers", _unique("layers", [layer.fqn for layer in plan.layers]), _names(facts))
    if plan.model != fingerprint(facts):
        raise InvalidPlanError(
            f"key 'model': the plan was made for a model with fingerprint {plan.model}, this one has "
            f"{fingerprint(facts)}; some shape or coupling differs, make the plan anew"
        )
    by_name = {layer.fqn: layer for layer in plan.layers}
    widths = plan.widths
    parts: dict[str, Parts] = {}
    around = Surroundings(facts)
    weights = weights_of(facts, ties)
    for weight in weights:
        entries = [by_name[layer.fqn] for layer in weight.layers]
        _check_tied(entries)
        made = part_of(entries[0], weight, widths, plan.options, around)
        if made is not None:
            parts[weight.fqn] = made
    sizes = {group.id: group.size for group in facts.groups}
    grown = frozenset(name for name, size in sizes.items() if widths[name] != size)
    cost = Cost(facts, (), weights, grown)
    fitted = assemble(cost, plan.options, widths, parts, plan.refusals, plan.example)
    layers = tuple(_keep_reason(layer, by_name[layer.fqn]) for layer in fitted.layers)
    return replace(fitted, layers=layers, version=plan.version)


def _check_pattern(plan: Plan) -> None:
    try:
        parse_rule(plan.options.pattern)
    except UserError as error:
        raise InvalidPlanError(f"options.pattern: {error}") from error


def _names(facts: Facts) -> list[str]:
    return [layer.fqn for layer in facts.layers]


def _keep_reason(fitted: PlanLayer, given: PlanLayer) -> PlanLayer:
    """The reason as it was, where the layer still becomes what it did."""
    before, after = ([(tensor.part, tensor.masked) for tensor in one.tensors] for one in (given, fitted))
    same = before == after and fitted.nonlinearity == given.nonlinearity
    return replace(fitted, reason=given.reason if same else "edited in the plan")


def _check_tied(entries: Sequence[PlanLayer]) -> None:
    if len({(entry.family, entry.density) for entry in entries}) > 1:
        names = ", ".join(entry.fqn for entry in entries)
        raise InvalidPlanError(f"layers {names} share one weight but differ in family or density")


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


def _unique(key: str, names: list[str]) -> list[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidPlanError(f"{key} ({name}): listed twice")
        seen.add(name)
    return names


def _same_names(key: str, found: list[str], expected: list[str]) -> None:
    known, given = set(expected), set(found)
    extra = next((name for name in found if name not in known), None)
    if extra is not None:
        raise InvalidPlanError(
            f"{key} ({extra}): the model has none of that name; is the plan another model's?"
        )
    missing = next((name for name in expected if name not in given), None)
    if missing is not None:
        raise InvalidPlanError(f"{key} ({missing}): missing from the plan")
