"""From facts and options to a plan; a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch.utils import _pytree as pytree

from sparsify.errors import BudgetError, Refusal, UserError
from sparsify.graph.facts import Facts
from sparsify.graph.facts import facts as facts_of
from sparsify.graph.readers import OtherReaders, other_readers
from sparsify.graph.traced import Traced
from sparsify.pattern_rules import PatternRule, parse_rule
from sparsify.planning import budget
from sparsify.planning.assemble import assemble, masked_parts
from sparsify.planning.cost import Cost, Weight, blocks_of, weights_of
from sparsify.planning.counts import counted
from sparsify.planning.distribution import profile
from sparsify.planning.drop_in import amount_for, numbers, too_wide
from sparsify.planning.families import DROP_IN, Parts
from sparsify.planning.fixed_density import width_at_density
from sparsify.planning.options import checked, is_dense
from sparsify.planning.schema import Plan, PlanOptions
from sparsify.planning.selection import Selection, select


def plan(
    traced: Traced,
    *,
    family: str = "wide",
    sparsity: float | None = None,
    width: float | None = None,
    pattern: str = "unstructured",
    scope: str = "all",
    budget: str = "model",
    distribution: str = "uniform",
    keep_dense: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    heads: bool = True,
    sparse_factors: str = "both",
    branch_nonlinearity: str = "auto",
    multiple: int | None = None,
    facts: Facts | None = None,
) -> Plan:
    """Plans a sparse model of the same FLOPs.

    With `sparsity` alone the width factor (branches, rank) is solved, with `width` alone the density; with
    both they are taken as they are and the FLOP ratio is what it is. With neither, the sparsity is 0.75. An
    n:m pattern has its own sparsity, so widths are solved for it; a width given beside it is taken as it is.

    Args:
        traced: The model, from `trace`.
        family: `wide` for wider layers; `parallel`, `factorized` or `doped` for several layers in the place
            of one, at its own shape; `auto` for one of them layer by layer; `masked` for masks on the given
            shapes without a budget.
        sparsity: Removed share of the masked weights, in [0, 1).
        width: Factor on every width in scope, at least 1; for `parallel` the number of branches, for
            `factorized` the factor on the rank of a dense factorization of the same FLOPs.
        pattern: What a mask may look like: `unstructured`, `fan-in`, `N:M` or `RxC`. Layers whose shape does
            not fit it stay dense.
        scope: `all` widths, or the `inner` ones (feed-forward, heads) off the residual stream.
        budget: Whose FLOPs stay: those of the `model`, or of every masked `layer`.
        distribution: How density is spread over the masked layers: `uniform`, `erk`, or `as-dense`, which
            gives every layer as many weights as it has in the given model, times one factor.
        keep_dense: fnmatch patterns of layers that are not masked.
        only: fnmatch patterns of the only layers to mask.
        heads: Whether groups that attention products are made of may widen.
        sparse_factors: Whether a factorized layer masks `both` factors or the `first` only.
        branch_nonlinearity: What goes into every branch, or between two factors: `auto` for what follows the
            layer in the model, `none`, or a name to insert.
        multiple: What widths are rounded to, in channels; by default 8, or finer in models too narrow for it.
        facts: The facts of `traced`, where they are known already.

    Returns:
        The plan; nothing of the model is changed.

    Raises:
        UserError: An option is out of range, contradicts another, or names no layer.
        BudgetError: No density meets the budget; `largest_width` names the largest width for which one does.
    """
    options = PlanOptions(
        family=family,
        sparsity=sparsity,
        width=width,
        pattern=pattern,
        scope=scope,
        budget=budget,
        distribution=distribution,
        keep_dense=_patterns(keep_dense),
        only=_patterns(only),
        heads=heads,
        sparse_factors=sparse_factors,
        branch_nonlinearity=branch_nonlinearity,
        multiple=multiple,
    )
    example = tuple(
        tuple(leaf.shape)
        for leaf in pytree.tree_leaves((traced.args, traced.kwargs))
        if isinstance(leaf, torch.Tensor)
    )
    known = facts if facts is not None else facts_of(traced)
    readers = other_readers(traced.module, known.layers, traced.ties)
    made = plan_from_facts(known, options, ties=traced.ties, example=example, readers=readers)
    return replace(made, refusals=(*traced.refusals, *made.refusals))


def plan_from_facts(
    facts: Facts,
    options: PlanOptions,
    *,
    ties: Iterable[Sequence[str]] = (),
    example: tuple[tuple[int, ...], ...] = (),
    readers: OtherReaders | None = None,
) -> Plan:
    """Plans from facts alone; see `plan`."""
    options = checked(options)
    rule = parse_rule(options.pattern)
    weights = weights_of(facts, ties)
    unfit: dict[str, Refusal] = {}
    while True:
        chosen = select(facts, weights, options, readers, unfit)
        if is_dense(options):
            chosen = Selection((), weights, frozenset(), ())
        base = {group.id: group.size for group in facts.groups}
        blocks = blocks_of(chosen.masked, rule, base)
        cost = Cost(facts, chosen.masked, chosen.dense, chosen.widened, blocks)
        solution = _solve(cost, chosen, options, unfit)
        found = _unfit(cost, solution.widths, rule)
        if not found:
            break
        unfit |= found
    solved = options.family in ("wide", "auto") and None in (options.sparsity, options.width)
    held = cost.budget if solved and options.budget == "model" else None
    family = "masked" if options.family == "masked" else "wide"
    parts = masked_parts(cost, family, solution.widths, counted(cost, solution, rule, held))
    full = _filled(cost, parts) if options.distribution == "erk" else []
    parts = {name: made for name, made in parts.items() if name not in {weight.fqn for weight in full}}
    replaced, infeasible = _replaced(cost, chosen, options, solution)
    stay = [Refusal(layer.fqn, "density", _FULL) for weight in full for layer in weight.layers]
    refusals = (*facts.refusals, *chosen.refusals, *infeasible, *stay)
    return assemble(cost, options, solution.widths, {**parts, **replaced}, refusals, example)


_FULL = "distribution erk gives it density 1: it stays dense"


def _filled(cost: Cost, parts: Mapping[str, Parts]) -> list[Weight]:
    """Masked weights that keep every entry."""
    return [weight for weight in cost.masked if parts[weight.fqn].density == 1]


def _unfit(cost: Cost, widths: Mapping[str, int], rule: PatternRule) -> dict[str, Refusal]:
    """Refusals of the masked weights whose shapes at these widths cannot have the pattern."""
    found = {}
    for weight in cost.masked:
        layer = weight.layers[0]
        reason = rule.refusal(weight.shape(widths), layer.groups.evaluate(widths))
        if reason is not None:
            found[weight.fqn] = Refusal(layer.fqn, "pattern", f"pattern {rule.name}: {reason}")
    return found


def _replaced(
    cost: Cost, chosen: Selection, options: PlanOptions, solution: budget.Solution
) -> tuple[dict[str, Parts], list[Refusal]]:
    """Numbers of the layers that are replaced at their own shape."""
    density = None if options.sparsity is None else 1 - options.sparsity
    if options.family == "auto" and density is None:
        density = budget.mean_density(cost, solution) if cost.masked else (options.width or 1.0) ** -2
    parts: dict[str, Parts] = {}
    refusals = []
    for drop_in in chosen.drop_ins:
        amount = amount_for(drop_in, options, solution.widths, density)
        made = numbers(drop_in, options, solution.widths, amount)
        if isinstance(made, Refusal):
            refusals.append(made)
        else:
            parts[drop_in.weight.fqn] = made
    if refusals and not parts and not cost.masked:
        if options.width is not None and options.family in DROP_IN:
            raise too_wide(chosen.drop_ins, options, solution.widths)
        raise BudgetError(f"nothing to replace: {refusals[0].fqn}: {refusals[0].reason}; lower the sparsity")
    return parts, refusals


def _solve(
    cost: Cost, chosen: Selection, options: PlanOptions, unfit: Mapping[str, Refusal]
) -> budget.Solution:
    shares = profile(options.distribution)
    if not cost.masked:
        if is_dense(options) or chosen.drop_ins:
            return budget.Solution(cost.base, ())
        if unfit:
            raise UserError(_no_fit(options, unfit))
        raise BudgetError(_nothing(cost, chosen, options))
    if options.family == "masked":
        return budget.density_of(cost, shares, options.sparsity or 0.0, cost.base)
    density = parse_rule(options.pattern).density
    if options.width is None and density is not None:
        return width_at_density(cost, density, options.multiple)
    if options.width is None:
        sparsity = options.sparsity or 0.0
        if options.budget == "layer":
            return budget.width_for_layers(cost, sparsity, options.multiple)
        return budget.width_for(cost, shares, sparsity, options.multiple)
    widths = cost.rounded(options.width, options.multiple or 1)
    if options.sparsity is not None:
        return budget.density_of(cost, shares, options.sparsity, widths)
    if options.budget == "layer":
        return budget.density_by_layer(cost, widths)
    try:
        return budget.density_at(cost, shares, widths)
    except BudgetError as error:
        raise _too_wide(cost, options, widths) from error


def _too_wide(cost: Cost, options: PlanOptions, widths: dict[str, int]) -> BudgetError:
    largest = budget.largest_width(cost, options.multiple or 1)
    share = cost.fixed(widths) / cost.budget
    return BudgetError(
        f"width {options.width:g} leaves nothing for the masked layers: what grows with the width and "
        f"is not masked takes {share:.3g} times the FLOPs of the dense model. The largest feasible width is "
        f"{largest:g}; take that, scope='inner', or sparsity= instead of width=",
        largest_width=largest,
    )


def _no_fit(options: PlanOptions, unfit: Mapping[str, Refusal]) -> str:
    """Why the pattern fits no layer."""
    shown = [f"{refusal.fqn}: {refusal.reason}" for refusal in list(unfit.values())[:3]]
    more = f" and {len(unfit) - len(shown)} more" if len(unfit) > len(shown) else ""
    return (
        f"pattern {options.pattern!r} fits none of the layers that may be masked ({'; '.join(shown)}{more}); "
        "choose another pattern or block size"
    )


def _nothing(cost: Cost, chosen: Selection, options: PlanOptions) -> str:
    """Why no layer is masked or replaced."""
    if options.family == "masked":
        return (
            "nothing to mask: the model has no hidden linear or convolution layer that may be masked; "
            "only= with a layer's full name masks a first or last layer too"
        )
    if options.family != "wide":
        rules: dict[str, list[Refusal]] = {}
        for refusal in chosen.refusals:
            rules.setdefault(refusal.rule, []).append(refusal)
        why = [
            f"{rule} ({len(found)}, as {found[0].fqn}: {found[0].reason})" for rule, found in rules.items()
        ]
        return f"nothing to replace in family {options.family!r}: {'; '.join(why) or 'no layers'}"
    pins = dict.fromkeys(group.pinned for group in cost.facts.groups if group.pinned)
    detail = f" Widths are pinned because: {'; '.join(str(pin) for pin in list(pins)[:3])}." if pins else ""
    return (
        "nothing to widen: no hidden layer touches a width that may change "
        f"(scope {options.scope!r}).{detail} family='masked' keeps the shapes and needs no widening"
    )


def _patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
