"""The counts that masks start with, where a schedule prunes them to the planned ones in training."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from sparsify.errors import UserError
from sparsify.pattern_rules import PatternRule, parse_rule
from sparsify.planning import Plan, PlanLayer
from sparsify.scaling import Scaling


def starting_plan(plan: Plan, density: float | None) -> Plan:
    """The plan with every mask at its count at the start: at `density`, or as planned where that is more.

    Args:
        plan: The plan, whose counts are what training ends with.
        density: Share of every masked weight that is active at the start; None for the planned one.

    Raises:
        UserError: The density is outside (0, 1], or no mask has less than that planned.
    """
    if density is None:
        return plan
    if not 0 < density <= 1:
        raise UserError(f"initial_density must lie in (0, 1], got {density}")
    if any(layer.masked for layer in plan.layers) and density < plan.density:
        raise UserError(
            f"initial_density {density:g} is below the planned density {plan.density:.4g}: masks are pruned "
            "from the first to the second; leave it out to start at the planned one"
        )
    rule = parse_rule(plan.options.pattern)
    return replace(plan, layers=tuple(_raised(layer, rule, density) for layer in plan.layers))


def drawn_for(scaling: Scaling, start: Scaling) -> Scaling:
    """The scaling of the planned density, with initial weights drawn for the density at the start."""
    tensors = tuple(replace(one, init_std=start[one.fqn].init_std) for one in scaling.tensors)
    return replace(scaling, tensors=tensors)


def _raised(layer: PlanLayer, rule: PatternRule, density: float) -> PlanLayer:
    if not layer.masked:
        return layer
    tensors = tuple(
        replace(tensor, nnz=rule.initial_count(tensor.shape, tensor.nnz, density))
        if tensor.masked
        else tensor
        for tensor in layer.tensors
    )
    masked = [tensor for tensor in tensors if tensor.masked]
    kept = sum(tensor.nnz for tensor in masked) / sum(prod(tensor.shape) for tensor in masked)
    return replace(layer, tensors=tensors, nnz=sum(tensor.nnz for tensor in tensors), density=kept)
