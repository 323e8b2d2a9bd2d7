"""Which weights are masked or replaced and which groups widen; a named refusal for every layer left alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from sparsify.errors import Refusal, UserError
from sparsify.graph.facts import Facts
from sparsify.graph.readers import OtherReaders
from sparsify.planning.cost import Weight
from sparsify.planning.drop_in import DropIn, Surroundings, choose
from sparsify.planning.families import DROP_IN
from sparsify.planning.refusing import Refusing, kept_dense
from sparsify.planning.schema import PlanOptions


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
    unfit: Mapping[str, Refusal] | None = None,
) -> Selection:
    """Chooses what is masked or replaced and what widens.

    A weight is a candidate when every layer that uses it is hidden (or a grouped convolution), is not kept
    dense and, with `only`, is named there; a first or last layer is one when `only` names it in full. In the
    masked family every candidate is masked. In the wide family the groups in scope that some candidate
    touches widen, and the candidates that touch one of those are masked. In parallel, factorized and doped
    every candidate is replaced at its own shape. `auto` is wide where a group widens, and replaces the rest.

    Args:
        facts: Facts of the model.
        weights: Its weights.
        options: What is asked for.
        readers: Who else reads the layers' parameters.
        unfit: Refusals of weights that cannot have the pattern, by weight; these are no candidates.

    Raises:
        UserError: A pattern matches no layer.
    """
    _check_patterns(facts, options)
    unfit = unfit or {}
    candidates = [one for one in weights if one.fqn not in unfit and _candidate(one, options) is None]
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
    dense = [weight for weight in weights if weight.fqn not in names]
    refusals = _pinned_streams(facts, options)
    refused = [one for one in chosen if isinstance(one, Refusal)]
    refusing = Refusing(facts, options, [*refused, *unfit.values()])
    for weight in dense:
        if weight.fqn not in taken:
            refusals += refusing.refusals(weight)
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
    return next((rule for rule in (kept_dense(layer, options) for layer in weight.layers) if rule), None)


def _check_patterns(facts: Facts, options: PlanOptions) -> None:
    names = [layer.fqn for layer in facts.layers]
    for option in ("keep_dense", "only"):
        for pattern in getattr(options, option):
            if not any(fnmatchcase(name, pattern) for name in names):
                near = get_close_matches(pattern, names, n=3, cutoff=0.4)
                hint = f"; near matches: {', '.join(near)}" if near else ""
                raise UserError(f"{option}: no layer matches {pattern!r}{hint}")
