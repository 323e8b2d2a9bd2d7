"""The options of a plan, checked by themselves and against each other."""

from __future__ import annotations

import math
from dataclasses import replace

from sparsify.errors import BudgetError, UserError
from sparsify.pattern_rules import NMRule, PatternRule, parse_rule
from sparsify.planning.distribution import profile
from sparsify.planning.schema import PlanOptions

DEFAULT_SPARSITY = 0.75
NONLINEARITIES = ("norm", "relu", "gelu", "silu", "tanh", "norm+relu", "norm+gelu", "norm+silu")
"""Names that can be inserted into branches, or between two factors."""
CHOICES = {
    "family": (("wide", "parallel", "factorized", "doped", "auto", "masked"), ()),
    "scope": (("all", "inner"), ()),
    "budget": (("model", "layer"), ("time",)),
    "sparse_factors": (("both", "first"), ()),
    "branch_nonlinearity": (("auto", "none", *NONLINEARITIES), ()),
}


def checked(options: PlanOptions) -> PlanOptions:
    """Returns the options with the default sparsity filled in, or the one that an n:m pattern has.

    Raises:
        UserError: An option is unknown, out of range, or contradicts another.
        BudgetError: The width is below 1.
    """
    for option, (known, planned) in CHOICES.items():
        value = getattr(options, option)
        if value not in known:
            state = "not available in this version" if value in planned else "unknown"
            raise UserError(f"{option} {value!r} is {state}; choose one of {', '.join(known)}")
    profile(options.distribution)
    rule = parse_rule(options.pattern)
    _check_family(options)
    _check_distribution(options)
    sparsity, width, multiple = options.sparsity, options.width, options.multiple
    if sparsity is not None and not 0 <= sparsity < 1:
        raise UserError(f"sparsity must be in [0, 1), not {sparsity}")
    if multiple is not None and multiple < 1:
        raise UserError(f"multiple must be a number of channels, at least 1, not {multiple}")
    if width is not None:
        _check_width(options, width)
    if rule.density is not None:
        sparsity = _fixed_sparsity(options, rule, rule.density)
    elif sparsity is None and width is None:
        sparsity = DEFAULT_SPARSITY
    return replace(options, sparsity=sparsity, pattern=rule.name)


def is_dense(options: PlanOptions) -> bool:
    """Whether the options ask for the dense model itself."""
    return not options.sparsity and options.width in (None, 1.0)


def _fixed_sparsity(options: PlanOptions, rule: PatternRule, density: float) -> float:
    """The sparsity of an n:m pattern, checked against the other options."""
    name, sparsity = rule.name, options.sparsity
    if sparsity is not None and abs(sparsity - (1 - density)) > 1e-6:
        raise UserError(
            f"pattern {name!r} keeps {density:.4g} of every layer: its sparsity is {1 - density:.4g}, not "
            f"{sparsity:g}; leave sparsity out, or choose another pattern"
        )
    if options.budget == "layer":
        raise UserError(
            f"budget='layer' gives every layer a density of its own, and pattern {name!r} fixes it; leave "
            "budget out, or choose another pattern"
        )
    if options.distribution == "erk":
        raise UserError(
            f"distribution 'erk' gives every layer a density of its own, and pattern {name!r} fixes it; "
            "leave distribution out, or choose another pattern"
        )
    branches = isinstance(rule, NMRule) and options.family == "parallel" and options.width is None
    if branches and isinstance(rule, NMRule) and rule.m % rule.n:
        raise UserError(
            f"family='parallel' at equal FLOPs has 1/density branches, and {rule.m}/{rule.n} is not whole; "
            f"choose a pattern 1:m or n:(k·n), or give the number of branches as width="
        )
    return 1 - density


def _check_distribution(options: PlanOptions) -> None:
    if options.distribution != "erk":
        return
    if options.budget == "layer":
        raise UserError(
            "distribution 'erk' moves FLOPs between layers and budget='layer' holds those of each; leave one"
        )
    if options.family in ("parallel", "factorized", "doped"):
        raise UserError(
            f"distribution 'erk' spreads density over masked layers; in family {options.family!r} every "
            "layer keeps its own FLOPs, and its branches or rank decide its density; leave distribution out, "
            "or choose family 'wide' or 'masked'"
        )


def _check_family(options: PlanOptions) -> None:
    family = options.family
    if options.sparse_factors != "both" and family != "factorized":
        raise UserError(f"sparse_factors belongs to family 'factorized', not to {family!r}; leave it out")
    if options.branch_nonlinearity in NONLINEARITIES and family not in ("parallel", "factorized", "auto"):
        raise UserError(
            f"branch_nonlinearity {options.branch_nonlinearity!r} belongs to families 'parallel' and "
            f"'factorized', not to {family!r}; leave it out"
        )


def _check_width(options: PlanOptions, width: float) -> None:
    if options.family == "masked":
        raise UserError("family='masked' keeps the widths; leave width out, or choose family='wide'")
    if options.family == "doped":
        raise UserError(
            "family='doped' has no width to choose: the sparsity decides the rank of its dense part; give "
            "sparsity= instead"
        )
    if not math.isfinite(width):
        raise UserError(f"width must be a finite factor, not {width}")
    if options.family == "parallel" and (width < 1 or width != round(width)):
        raise UserError(
            f"width of family='parallel' is a number of branches: a whole number of at least 1, not {width:g}"
        )
    if width < 1:
        raise BudgetError(
            f"width {width:g} is below 1: the masked layers would need a density above 1 to use up the "
            "budget; choose a width of at least 1"
        )
