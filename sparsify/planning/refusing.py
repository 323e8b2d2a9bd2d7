"""Why a layer is left alone: the rules and their reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase

from sparsify.errors import Refusal
from sparsify.graph.facts import Facts, LayerFacts
from sparsify.planning.cost import Weight
from sparsify.planning.schema import PlanOptions

MASKABLE_ROLES = ("hidden", "grouped")
ROLES_ON_DEMAND = ("input", "readout")
"""Masked only where `only` names the layer in full."""

ROLE_REFUSALS = {
    "input": ("stem", "first weight layer after an input: its fan-in is the data's, so it stays dense"),
    "readout": ("readout", "produces a model output: it stays dense"),
    "depthwise": ("depthwise", "depthwise convolution: few weights and no fan-in to thin out, stays dense"),
    "transposed": ("transposed", "transposed convolution: stays dense, and follows the widths around it"),
    "dtype": (
        "dtype",
        "only real floating-point weights are transformed, and this one is complex or integer",
    ),
    "embedding": ("embedding", "a table look-up has no FLOPs to save"),
}


def kept_dense(layer: LayerFacts, options: PlanOptions) -> str | None:
    """Returns the rule that keeps a layer dense by its role or its name, or None."""
    asked_for = layer.role in ROLES_ON_DEMAND and layer.fqn in options.only
    if (layer.role not in MASKABLE_ROLES and not asked_for) or layer.kind == "embedding":
        return ROLE_REFUSALS.get(layer.role, (layer.role, ""))[0]
    if any(fnmatchcase(layer.fqn, pattern) for pattern in options.keep_dense):
        return "keep-dense"
    if options.only and not any(fnmatchcase(layer.fqn, pattern) for pattern in options.only):
        return "only"
    return None


class Refusing:
    """Finds the refusals of weights that are neither masked nor replaced."""

    def __init__(self, facts: Facts, options: PlanOptions, refused: Iterable[Refusal] = ()) -> None:
        """Prepares the look-ups.

        Args:
            facts: Facts of the model.
            options: The options of the plan.
            refused: Refusals already found, by the first layer of a weight.
        """
        self._options = options
        self._refused = {refusal.fqn: refusal for refusal in refused}
        self._products = facts.other_flops.symbols
        self._streams = frozenset(group.id for group in facts.groups if group.residual)
        pinned = [group for group in facts.groups if group.pinned]
        self._pins = {member: str(group.pinned) for group in pinned for member in group.members}

    def refusals(self, weight: Weight) -> list[Refusal]:
        """One refusal for each layer that uses a weight."""
        own = {layer.fqn: kept_dense(layer, self._options) for layer in weight.layers}
        known = self._refused.get(weight.layers[0].fqn)
        found = []
        for layer in weight.layers:
            rule = own[layer.fqn]
            if rule is not None:
                found.append(Refusal(layer.fqn, rule, _reason(layer, rule)))
            elif any(own.values()):
                other = next(fqn for fqn, kept in own.items() if kept)
                reason = f"shares its weight with {other}, which stays dense"
                found.append(Refusal(layer.fqn, "tied", reason))
            elif known is not None:
                found.append(replace(known, fqn=layer.fqn))
            else:
                found.append(self._not_widened(weight, layer))
        return found

    def _not_widened(self, weight: Weight, layer: LayerFacts) -> Refusal:
        """A candidate none of whose groups widens: out of scope, or pinned."""
        symbols, inner = weight.symbols, self._options.scope == "inner"
        heads = frozenset[str]() if self._options.heads else symbols & self._products
        if heads and symbols <= heads | (self._streams if inner else frozenset()):
            return Refusal(layer.fqn, "heads", "widens only with the heads, which heads=False leaves alone")
        if inner and symbols:
            stream = ", ".join(sorted(symbols))
            return Refusal(
                layer.fqn, "scope", f"touches only the residual stream ({stream}), kept by scope 'inner'"
            )
        dims = (f"{layer.weight}[{axis}]" for axis in range(2))
        why = dict.fromkeys(self._pins[dim] for dim in dims if dim in self._pins)
        return Refusal(layer.fqn, "pinned", "; ".join(why) or "no dimension of its weight may change")


def _reason(layer: LayerFacts, rule: str) -> str:
    if rule == "keep-dense":
        return "named in keep_dense"
    if rule == "only":
        return "not named in only"
    return ROLE_REFUSALS.get(layer.role, ("", f"layers of role {layer.role} stay dense"))[1]
