"""The scaling of one rewrite: options of the user, facts of every tensor, and a base where one is given."""

from __future__ import annotations

from dataclasses import dataclass

from sparsify.errors import UserError
from sparsify.graph.facts import Facts
from sparsify.graph.traced import Traced
from sparsify.passes.attention import attention_scales
from sparsify.passes.base_model import base_of
from sparsify.passes.contract import Init
from sparsify.passes.preserve import without_tied_multipliers
from sparsify.passes.tensor_facts import tensor_facts
from sparsify.planning import Plan
from sparsify.scaling import Base, Scaling, scaling_table
from sparsify.scaling.table import Parameterization


@dataclass(frozen=True)
class ScalingOptions:
    """How initial weights, learning rates and the forward pass follow width and density.

    Attributes:
        parameterization: `supar`, `mup` or `sp`.
        density_exponent: γ in m_ρ = density^γ; 1 when not given.
        base: The dense model that hyper-parameters were tuned on, where it is not the given one.
        lr_behind_batchnorm: Correct learning rates behind batch normalisations too.
        input_multiplier: α_in, on what embeddings and first layers put out.
        output_multiplier: α_out, on what readouts put out.
    """

    parameterization: Parameterization = "supar"
    density_exponent: float | None = None
    base: Base | None = None
    lr_behind_batchnorm: bool = False
    input_multiplier: float = 1.0
    output_multiplier: float = 1.0


def scaling_of(traced: Traced, facts: Facts, plan: Plan, options: ScalingOptions, init: Init) -> Scaling:
    """Multipliers of every parameter of the rewritten model.

    Args:
        traced: The given model.
        facts: Its facts.
        plan: A plan that fits it.
        options: What the user asks for.
        init: Whether weights are drawn or kept.

    Raises:
        UserError: The base is another architecture; an option is out of range, or does not go with kept
            weights.
    """
    base = options.base
    if init == "preserve":
        _check_kept(options)
    if base is not None:
        base.check_fits(base_of(traced, facts, values=False))
    found = scaling_table(
        tensor_facts(traced, facts, plan, base),
        parameterization=options.parameterization,
        density_exponent=1.0 if options.density_exponent is None else options.density_exponent,
        lr_behind_batchnorm=options.lr_behind_batchnorm,
        input_multiplier=options.input_multiplier,
        output_multiplier=options.output_multiplier,
        attention=() if base is None else attention_scales(traced.module, base),
    )
    return without_tied_multipliers(found, traced.ties) if init == "preserve" else found


def _check_kept(options: ScalingOptions) -> None:
    if options.base is not None:
        raise UserError(
            "base= says how new weights are drawn, and init='preserve' keeps the given ones, with the given "
            "model as the base: leave base= out, or use init='scratch'"
        )
    for name in ("input_multiplier", "output_multiplier"):
        if getattr(options, name) != 1.0:
            raise UserError(
                f"{name} changes what the model computes, which init='preserve' keeps: leave it out, or use "
                "init='scratch'"
            )
