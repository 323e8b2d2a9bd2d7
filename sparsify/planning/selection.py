"""Which weights are masked or replaced and which groups widen; a named refusal for every layer left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from sparsify.errors import Refusal, UserError
from sparsify.graph.facts import Facts, LayerFacts
from sparsify.graph.readers import OtherReaders
from sparsify.planning.cost import Weight
from sparsify.planning.drop_in import DropIn, Surroundings, choose
from sparsify.planning.families import DROP_IN
from sparsify.planning.schema import PlanOptions

MASKABLE_ROLES = ("hidden", "grouped")
ROLES_ON_DEMAND = ("input", "readout")
"""Masked only where `only` names the layer in full."""

ROLE_REFUSALS = {
    "input": ("stem", "first weight layer after an input: its fan-in is the data's, so it stays dense"),
    "readout": ("readout", "produces a model output: it stays dense"),
    "depthwise": ("depthwise", "depthwise convolution: few weights and no fan-in to thin out, stays dense"),
    "transposed": ("transposed", "transposed convolution: stays dense, and follows the widths around it"),
    "embedding": ("embedding", "a table look-up has no FLOPs to save"),
}


@dataclass(frozen=True)
class Selection:
    """The structural half of a plan.

    Attributes:
        masked: Weights that get a mask.
        dense: Weights that get none; those of `drop_ins` are among them, since they cost as much.
        widened: Ids of the groups that widen.
        refusals: One entry a layer that is left alone.
        drop_ins: Layers that are replaced at their own shape.
    """

    masked: tuple[Weight, ...]
    dense: tuple[Weight, ...]
    widened: frozenset[str]
    refusals: tuple[Refusal, ...]
    drop_ins: tuple[DropIn, ...] = ()


def select(
    facts: Facts,
    weights: Sequence[Weight],
    options: PlanOptions,
    readers: OtherReaders | None = None,
) -> Selection:
    """Chooses what is masked or replaced and what widens.

    A weight is a candidate when every layer that uses it is hidden (or a grouped convolution), is not kept
    dense and, with `only`, is named there; a first or last layer is one when `only` names it in full. In the
    masked family every candidate is masked. In the wide family the groups in scope that some candidate
    touches widen, and the candidates that touch one of those are masked. In parallel, factorized and doped
    every candidate is replaced at its own shape. `auto` is wide where a group widens, and replaces the rest.

    Raises:
        UserError: A pattern matches no layer.
    """
    _check_patterns(facts, options)
    candidates = [weight for weight in weights if _candidate(weight, options) is None]
    widened = frozenset[str]()
    masked: list[Weight] = []
    if options.family == "masked":
        masked = candidates
    elif options.family not in DROP_IN:
        widened = _widened(facts, candidates, options)
        masked = [weight for weight in candidates if weight.symbols & widened]
    names = {weight.fqn for weight in masked}
    rest = [weight for weight in candidates if weight.fqn not in names]
    around = Surroundings(facts, readers)
    replaces = options.family in (*DROP_IN, "auto")
    chosen = [choose(around, weight, options) for weight in rest] if replaces else []
    taken = {drop_in.weight.fqn for drop_in in chosen if isinstance(drop_in, DropIn)}
    refused = {one.fqn: one for one in chosen if isinstance(one, Refusal)}
    dense = [weight for weight in weights if weight.fqn not in names]
    refusals = _pinned_streams(facts, options)
    for weight in dense:
        if weight.fqn not in taken:
            refusals += _refusals(facts, weight, options, refused)
    drop_ins = tuple(one for one in chosen if isinstance(one, DropIn))
    return Selection(tuple(masked), tuple(dense), widened, tuple(refusals), drop_ins)


def _widened(facts: Facts, candidates: Iterable[Weight], options: PlanOptions) -> frozenset[str]:
    """Groups that widen: free, touched by a candidate, in scope, and no heads where those are to stay."""
    touched = {symbol for weight in candidates for symbol in weight.symbols}
    stay = frozenset[str]() if options.heads else facts.other_flops.symbols
    return frozenset(
        group.id
        for group in facts.groups
        if group.pinned is None
        and group.id in touched - stay
        and not (options.scope == "inner" and group.residual)
    )


def _pinned_streams(facts: Facts, options: PlanOptions) -> list[Refusal]:
    """Residual streams that `scope="all"` would widen and cannot; named by their first tensor."""
    if options.family not in ("wide", "auto") or options.scope == "inner":
        return []
    return [
        Refusal(
            group.members[0].partition("[")[0],
            "pinned",
            f"the residual stream keeps its width: {group.pinned}",
        )
        for group in facts.groups
        if group.residual and group.pinned and group.members
    ]


def _candidate(weight: Weight, options: PlanOptions) -> str | None:
    """Returns the rule that keeps a weight dense, or None."""
    return next((rule for rule in (_kept_dense(layer, options) for layer in weight.layers) if rule), None)


def _kept_dense(layer: LayerFacts, options: PlanOptions) -> str | None:
    asked_for = layer.role in ROLES_ON_DEMAND and layer.fqn in options.only
    if (layer.role not in MASKABLE_ROLES and not asked_for) or layer.kind == "embedding":
        return ROLE_REFUSALS.get(layer.role, (layer.role, ""))[0]
    if any(fnmatchcase(layer.fqn, pattern) for pattern in options.keep_dense):
        return "keep-dense"
    if options.only and not any(fnmatchcase(layer.fqn, pattern) for pattern in options.only):
        return "only"
    return None


def _refusals(
    facts: Facts, weight: Weight, options: PlanOptions, refused: Mapping[str, Refusal]
) -> list[Refusal]:
    """Why the layers of a weight are left alone; `refused` holds what `choose` said, by its first layer."""
    own = {layer.fqn: _kept_dense(layer, options) for layer in weight.layers}
    found = []
    for layer in weight.layers:
        rule = own[layer.fqn]
        if rule is not None:
            found.append(Refusal(layer.fqn, rule, _reason(layer, rule)))
        elif any(own.values()):
            other = next(fqn for fqn, kept in own.items() if kept)
            reason = f"shares its weight with {other}, which stays dense"
            found.append(Refusal(layer.fqn, "tied", reason))
        elif weight.layers[0].fqn in refused:
            found.append(replace(refused[weight.layers[0].fqn], fqn=layer.fqn))
        else:
            found.append(_not_widened(facts, weight, layer, options))
    return found


def _reason(layer: LayerFacts, rule: str) -> str:
    if rule == "keep-dense":
        return "named in keep_dense"
    if rule == "only":
        return "not named in only"
    return ROLE_REFUSALS.get(layer.role, ("", f"layers of role {layer.role} stay dense"))[1]


def _not_widened(facts: Facts, weight: Weight, layer: LayerFacts, options: PlanOptions) -> Refusal:
    """A candidate none of whose groups widens: out of scope, or pinned."""
    symbols = weight.symbols
    heads = frozenset[str]() if options.heads else symbols & facts.other_flops.symbols
    if heads and symbols <= heads | _streams(facts, options):
        return Refusal(layer.fqn, "heads", "widens only with the heads, which heads=False leaves alone")
    if options.scope == "inner" and symbols:
        stream = ", ".join(sorted(symbols))
        return Refusal(
            layer.fqn, "scope", f"touches only the residual stream ({stream}), kept by scope 'inner'"
        )
    dims = {f"{layer.weight}[{axis}]" for axis in range(2)}
    why = dict.fromkeys(g.pinned for g in facts.groups if g.pinned and dims & set(g.members))
    reason = "; ".join(str(reason) for reason in why) or "no dimension of its weight may change"
    return Refusal(layer.fqn, "pinned", reason)


def _streams(facts: Facts, options: PlanOptions) -> frozenset[str]:
    """Residual streams that the scope leaves alone."""
    return frozenset(group.id for group in facts.groups if group.residual and options.scope == "inner")


def _check_patterns(facts: Facts, options: PlanOptions) -> None:
    names = [layer.fqn for layer in facts.layers]
    for option in ("keep_dense", "only"):
        for pattern in getattr(options, option):
            if not any(fnmatchcase(name, pattern) for name in names):
                near = get_close_matches(pattern, names, n=3, cutoff=0.4)
                hint = f"; near matches: {', '.join(near)}" if near else ""
                raise UserError(f"{option}: no layer matches {pattern!r}{hint}")
