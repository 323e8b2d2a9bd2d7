"""Where every tensor of the rewritten model comes from, and what became of it on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sparsify.graph.facts import Facts
from sparsify.graph.traced import KeySource, Traced
from sparsify.passes.contract import Init
from sparsify.passes.mask import planned_counts
from sparsify.passes.parts import Part, parts
from sparsify.passes.record import How, ParameterMapping, parameter_map
from sparsify.planning import Plan

_FAMILIES: Mapping[str, How] = {"parallel": "branched", "factorized": "factored", "doped": "doped"}


def mapping(traced: Traced, facts: Facts, plan: Plan, init: Init) -> tuple[ParameterMapping, ...]:
    """The parameter map of a rewritten model: one entry for each of its parameters, ties under every name.

    A parameter that is new, such as the gain of an inserted normalisation, counts as added beside the weight
    of its layer.
    """
    table = parts(traced, facts, plan)
    before = {name: tuple(p.shape) for name, p in traced.module.named_parameters(remove_duplicate=False)}
    masked = planned_counts(plan)
    weights = {layer.weight for layer in facts.layers if layer.kind != "embedding"}
    how = {name: _how(part, before, masked, weights, init) for name, part in table.items()}
    return parameter_map(traced, how, {name: _origin(part) for name, part in table.items()})


def key_sources(traced: Traced, mapped: Iterable[ParameterMapping], keys: set[str]) -> dict[str, KeySource]:
    """Sources of the keys of a rewritten model's state_dict; keys without one (masks) are left out."""
    found = {key: source for key, source in traced.key_map.items() if key in keys}
    for entry in mapped:
        if entry.new in keys and entry.new not in found and entry.how != "added":
            found[entry.new] = KeySource(entry.old, entry.transposed)
    return found


def _origin(part: Part) -> str:
    if part.origin is not None:
        return part.origin
    return part.layer.weight if part.layer is not None else part.fqn


def _how(
    part: Part,
    before: Mapping[str, tuple[int, ...]],
    masked: Mapping[str, int],
    weights: set[str],
    init: Init,
) -> How:
    if part.origin is None:
        return "added"
    if part.layer is not None and not (part.kind == "bias" and part.layer.family != "parallel"):
        return _FAMILIES[part.layer.family]
    if part.shape != before[part.origin]:
        return "widened"
    if init == "preserve":
        return "pruned" if part.fqn in masked else "kept"
    return "redrawn" if part.origin in weights or part.origin.endswith(".bias") else "kept"
