"""Number of parameters that a planned model stores, zeros of masked weights included."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from sparsify.graph.facts import Facts, LayerFacts
from sparsify.planning.families import DROP_IN
from sparsify.planning.schema import Plan, PlanLayer


def stored_parameters(facts: Facts, plan: Plan, names: Iterable[str]) -> int:
    """Counts the parameters of the rewritten model.

    Args:
        facts: Facts of the given model.
        plan: A plan for it.
        names: Its parameters, ties under one name.
    """
    widths = plan.widths
    sizes = {name: prod(dim.evaluate(widths) for dim in dims) for name, dims in facts.parameters.items()}
    total = sum(sizes[name] for name in names)
    for layer, planned in zip(facts.layers, plan.layers, strict=True):
        if planned.family in DROP_IN:
            total += sum(prod(tensor.shape) for tensor in planned.tensors) - prod(planned.shape)
            total += _biases(layer, planned, sizes) + _norms(layer, planned, sizes)
    return total


def _biases(layer: LayerFacts, planned: PlanLayer, sizes: dict[str, int]) -> int:
    """Every branch has a bias of its own; V, or the sparse part, keeps the layer's."""
    return (planned.branches - 1) * sizes.get(f"{layer.fqn}.bias", 0)


def _norms(layer: LayerFacts, planned: PlanLayer, sizes: dict[str, int]) -> int:
    """Gains and biases of norms in branches and between factors; one that follows moves into the branches."""
    width = planned.rank or planned.shape[0]
    if planned.nonlinearity.startswith("norm"):
        return 2 * width * planned.branches
    if planned.nonlinearity != "follows" or layer.follows.norm is None:
        return 0
    affine = [sizes.get(f"{layer.follows.norm}.{name}", 0) for name in ("weight", "bias")]
    if planned.family == "parallel":
        return (planned.branches - 1) * sum(affine)
    return width * sum(size > 0 for size in affine)
