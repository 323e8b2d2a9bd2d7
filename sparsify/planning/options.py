"""The options of a plan, checked by themselves and against each other."""

from __future__ import annotations

import math
from dataclasses import replace

from sparsify.errors import BudgetError, UserError
from sparsify.planning.distribution import profile
from sparsify.planning.schema import PlanOptions

DEFAULT_SPARSITY = 0.75
NONLINEARITIES = ("norm", "relu", "gelu", "silu", "tanh", "norm+relu", "norm+gelu", "norm+silu")
"""Names that can be inserted into branches, or between two factors."""
CHOICES = {
    "family": (("wide", "parallel", "factorized", "doped", "auto", "masked"), ()),
    "pattern": (("unstructured",), ("fan-in", "N:M", "RxC")),
    "scope": (("all", "inner"), ()),
    "budget": (("model", "layer"), ("time",)),
    "sparse_factors": (("both", "first"), ()),
    "branch_nonlinearity": (("auto", "none", *NONLINEARITIES), ()),
}


def checked(options: PlanOptions) -> PlanOptions:
    """Returns the options with the default sparsity filled in.

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
    _check_family(options)
    sparsity, width, multiple = options.sparsity, options.width, options.multiple
    if sparsity is not None and not 0 <= sparsity < 1:
        raise UserError(f"sparsity must be in [0, 1), not {sparsity}")
    if multiple is not None and multiple < 1:
        raise UserError(f"multiple must be a number of channels, at least 1, not {multiple}")
    if width is not None:
        _check_width(options, width)
    if sparsity is None and width is None:
        sparsity = DEFAULT_SPARSITY
    return replace(options, sparsity=sparsity)


def is_dense(options: PlanOptions) -> bool:
    """Whether the options ask for the dense model itself."""
    return not options.sparsity and options.width in (None, 1.0)


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
