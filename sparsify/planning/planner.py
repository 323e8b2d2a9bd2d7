"""From facts and options to a plan; a pure function."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch.utils import _pytree as pytree

from sparsify.errors import BudgetError, UserError
from sparsify.graph.facts import Facts
from sparsify.graph.facts import facts as facts_of
from sparsify.graph.traced import Traced
from sparsify.planning import budget
from sparsify.planning.assemble import assemble
from sparsify.planning.cost import Cost, weights_of
from sparsify.planning.distribution import profile
from sparsify.planning.schema import Plan, PlanOptions
from sparsify.planning.selection import Selection, select

DEFAULT_SPARSITY = 0.75
CHOICES = {
    "family": (("wide", "masked"), ("parallel", "factorized", "doped")),
    "pattern": (("unstructured",), ("fan-in", "N:M", "RxC")),
    "scope": (("all", "inner"), ()),
    "budget": (("model", "layer"), ("time",)),
}


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
    facts: Facts | None = None,
) -> Plan:
    """Plans a sparse model of the same FLOPs.

    With `sparsity` alone the width factor is solved, with `width` alone the density; with both they are taken
    as they are and the FLOP ratio is what it is. With neither, the sparsity is 0.75.

    Args:
        traced: The model, from `trace`.
        family: `wide`, or `masked` for masks on the given shapes without a budget.
        sparsity: Removed share of the masked weights, in [0, 1).
        width: Factor on every width in scope, at least 1.
        pattern: What a mask may look like.
        scope: `all` widths, or the `inner` ones (feed-forward, heads) off the residual stream.
        budget: Whose FLOPs stay: those of the `model`, or of every masked `layer`.
        distribution: How density is spread over the masked layers.
        keep_dense: fnmatch patterns of layers that are not masked.
        only: fnmatch patterns of the only layers to mask.
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
    )
    example = tuple(
        tuple(leaf.shape)
        for leaf in pytree.tree_leaves((traced.args, traced.kwargs))
        if isinstance(leaf, torch.Tensor)
    )
    known = facts if facts is not None else facts_of(traced)
    made = plan_from_facts(known, options, ties=traced.ties, example=example)
    return replace(made, refusals=(*traced.refusals, *made.refusals))


def plan_from_facts(
    facts: Facts,
    options: PlanOptions,
    *,
    ties: Iterable[Sequence[str]] = (),
    example: tuple[tuple[int, ...], ...] = (),
) -> Plan:
    """Plans from facts alone; see `plan`."""
    options = _checked(options)
    weights = weights_of(facts, ties)
    chosen = select(facts, weights, options)
    if _is_dense(options):
        chosen = Selection((), weights, frozenset(), ())
    cost = Cost(facts, chosen.masked, chosen.dense, chosen.widened)
    solution = _solve(cost, options)
    solved = options.family == "wide" and None in (options.sparsity, options.width)
    held = cost.budget if solved and options.budget == "model" else None
    counts = budget.spend(cost, solution, held)
    return assemble(cost, options, solution.widths, counts, (*facts.refusals, *chosen.refusals), example)


def _solve(cost: Cost, options: PlanOptions) -> budget.Solution:
    shares = profile(options.distribution)
    if not cost.masked:
        if _is_dense(options):
            return budget.Solution(cost.base, ())
        raise BudgetError(_nothing(cost, options))
    if options.family == "masked":
        return budget.density_of(cost, shares, options.sparsity or 0.0, cost.base)
    if options.width is None:
        sparsity = options.sparsity or 0.0
        if options.budget == "layer":
            return budget.width_for_layers(cost, sparsity)
        return budget.width_for(cost, shares, sparsity)
    widths = cost.rounded(options.width, 1)
    if options.sparsity is not None:
        return budget.density_of(cost, shares, options.sparsity, widths)
    if options.budget == "layer":
        return budget.density_by_layer(cost, widths)
    try:
        return budget.density_at(cost, shares, widths)
    except BudgetError as error:
        raise _too_wide(cost, options.width, widths) from error


def _is_dense(options: PlanOptions) -> bool:
    """Whether the options ask for the dense model itself."""
    return not options.sparsity and options.width in (None, 1.0)


def _too_wide(cost: Cost, width: float, widths: dict[str, int]) -> BudgetError:
    largest = budget.largest_width(cost)
    share = cost.fixed(widths) / cost.budget
    return BudgetError(
        f"width {width:g} leaves nothing for the masked layers: what grows with the width and is not masked "
        f"takes {share:.3g} times the FLOPs of the dense model. The largest feasible width is {largest:g}; "
        "take that, scope='inner', or sparsity= instead of width=",
        largest_width=largest,
    )


def _nothing(cost: Cost, options: PlanOptions) -> str:
    pins = dict.fromkeys(group.pinned for group in cost.facts.groups if group.pinned)
    if options.family == "masked":
        return (
            "nothing to mask: the model has no hidden linear or convolution layer that may be masked; "
            "only= with a layer's full name masks a first or last layer too"
        )
    detail = f" Widths are pinned because: {'; '.join(str(pin) for pin in list(pins)[:3])}." if pins else ""
    return (
        "nothing to widen: no hidden layer touches a width that may change "
        f"(scope {options.scope!r}).{detail} family='masked' keeps the shapes and needs no widening"
    )


def _checked(options: PlanOptions) -> PlanOptions:
    """Checks every option by itself and against the others, and fills in the default sparsity."""
    for option, (known, planned) in CHOICES.items():
        value = getattr(options, option)
        if value not in known:
            state = "not available in this version" if value in planned else "unknown"
            raise UserError(f"{option} {value!r} is {state}; choose one of {', '.join(known)}")
    profile(options.distribution)
    sparsity, width = options.sparsity, options.width
    if sparsity is not None and not 0 <= sparsity < 1:
        raise UserError(f"sparsity must be in [0, 1), not {sparsity}")
    if width is not None:
        if options.family == "masked":
            raise UserError("family='masked' keeps the widths; leave width out, or choose family='wide'")
        if not math.isfinite(width):
            raise UserError(f"width must be a finite factor, not {width}")
        if width < 1:
            raise BudgetError(
                f"width {width:g} is below 1: the masked layers would need a density above 1 to use up the "
                "budget; choose a width of at least 1"
            )
    if sparsity is None and width is None:
        sparsity = DEFAULT_SPARSITY
    return replace(options, sparsity=sparsity)


def _patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)
