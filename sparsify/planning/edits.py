"""What one layer of a plan becomes, from the values that a person may have edited.

A value was edited where it differs from what the layer's own tensors say.
"""

from __future__ import annotations

from collections.abc import Mapping

from sparsify.errors import InvalidPlanError
from sparsify.graph.facts import LayerFacts
from sparsify.pattern_rules import parse_rule
from sparsify.planning.cost import Weight
from sparsify.planning.drop_in import KINDS, DropIn, Surroundings, numbers
from sparsify.planning.families import DROP_IN, Amount, Parts, masked
from sparsify.planning.options import DEFAULT_SPARSITY, NONLINEARITIES
from sparsify.planning.schema import PlanLayer, PlanOptions, PlanTensor

FAMILIES = ("dense", "masked", "wide", *DROP_IN)
_FAMILY_OF_PARTS = {"branch": "parallel", "u": "factorized", "v": "factorized", "sparse": "doped"}


def part_of(
    layer: PlanLayer,
    weight: Weight,
    widths: Mapping[str, int],
    options: PlanOptions,
    around: Surroundings,
) -> Parts | None:
    """What a layer becomes, or None where it stays dense.

    Args:
        layer: Its entry in the plan, possibly edited.
        weight: Its weight.
        widths: Widths of all groups.
        options: The plan's options.
        around: What lies around the layers.

    Raises:
        InvalidPlanError: A value is out of range, or does not go with the family; the message names the layer
            and the key.
    """
    _check(layer, weight, widths)
    family = _family(layer, options)
    if family == "dense":
        return None
    _check_fixed_density(layer, family, options)
    if family in DROP_IN:
        return _drop_in(layer, family, weight, widths, options, around)
    shape, rule = weight.shape(widths), parse_rule(options.pattern)
    where = f"layers ({layer.fqn})"
    reason = rule.refusal(shape, weight.layers[0].groups.evaluate(widths))
    if reason is not None:
        raise InvalidPlanError(f"{where}: pattern {rule.name}: {reason}; make it dense, or change its widths")
    return masked(family, weight.fqn, shape, rule.count(shape, layer.density), "masked")


def _family(layer: PlanLayer, options: PlanOptions) -> str:
    """The family meant: a density given to a layer that was dense asks for a mask."""
    was_masked = any(tensor.masked for tensor in layer.tensors)
    if layer.family != "dense" or was_masked or layer.density == 1:
        return layer.family
    return options.family if options.family in ("masked", *DROP_IN) else "wide"


def _drop_in(
    layer: PlanLayer,
    family: str,
    weight: Weight,
    widths: Mapping[str, int],
    options: PlanOptions,
    around: Surroundings,
) -> Parts:
    facts = weight.layers[0]
    if facts.kind not in KINDS:
        raise InvalidPlanError(f"layers ({layer.fqn}).family: {family!r} does not fit a {facts.kind}")
    if len(weight.layers) > 1:
        names = ", ".join(one.fqn for one in weight.layers)
        raise InvalidPlanError(
            f"layers ({layer.fqn}).family: {family!r} needs a weight of its own; {names} share one"
        )
    changed = _family_of(layer.tensors) != family
    drop_in = DropIn(weight, family, _nonlinearity(layer, family, changed, facts))
    _check_nonlinearity(drop_in, changed, around, options)
    made = numbers(drop_in, options, widths, _amount(layer, family, options))
    if isinstance(made, Parts):
        return made
    key = "branches" if family == "parallel" else "rank"
    raise InvalidPlanError(f"layers ({layer.fqn}).{key}: {made.reason}")


def _amount(layer: PlanLayer, family: str, options: PlanOptions) -> Amount:
    """Density and count as given; on a change of family, what was not edited follows at equal FLOPs."""
    given = layer.branches if family == "parallel" else layer.rank
    if _family_of(layer.tensors) == family:
        return Amount(layer.density, given)
    density, branches, rank = _recorded(layer.tensors)
    count = None if given == (branches if family == "parallel" else rank) else given
    if count is not None:
        return Amount(None if layer.density == density else layer.density, count)
    default = DEFAULT_SPARSITY if options.sparsity is None else options.sparsity
    return Amount(layer.density if layer.density < 1 else 1 - default)


def _recorded(tensors: tuple[PlanTensor, ...]) -> tuple[float, int, int]:
    """Density, branches and rank that the tensors say."""
    made = Parts("", tensors)
    return (made.density if tensors else 1.0, made.branches, made.rank)


def _family_of(tensors: tuple[PlanTensor, ...]) -> str:
    names = [_FAMILY_OF_PARTS.get(tensor.part, "") for tensor in tensors]
    return "doped" if "doped" in names else next(iter(names), "")


def _nonlinearity(layer: PlanLayer, family: str, changed: bool, facts: LayerFacts) -> str:
    """The nonlinearity as given; on a change of family to one that needs one, what follows the layer."""
    given = layer.nonlinearity
    if family == "doped":
        return "none"
    return "follows" if given == "none" and changed and facts.follows.label != "none" else given


def _check(layer: PlanLayer, weight: Weight, widths: Mapping[str, int]) -> None:
    where = f"layers ({layer.fqn})"
    facts = weight.layers[0]
    if layer.family not in FAMILIES:
        raise InvalidPlanError(
            f"{where}.family: expected one of {', '.join(FAMILIES)}, found {layer.family!r}"
        )
    if not 0 < layer.density <= 1:
        raise InvalidPlanError(f"{where}.density: must be in (0, 1], not {layer.density}")
    if facts.kind == "embedding" and (layer.density < 1 or layer.family != "dense"):
        key = "density" if layer.density < 1 else "family"
        raise InvalidPlanError(f"{where}.{key}: an embedding cannot be masked")
    if layer.branches < 1:
        raise InvalidPlanError(f"{where}.branches: must be at least 1, not {layer.branches}")
    groups = facts.groups.evaluate(widths)
    if layer.rank < 0 or layer.rank % groups:
        raise InvalidPlanError(
            f"{where}.rank: must be a multiple of the layer's {groups} groups, not {layer.rank}"
        )


def _check_fixed_density(layer: PlanLayer, family: str, options: PlanOptions) -> None:
    """An n:m pattern has one density, which parts made of a dense layer get by themselves."""
    density = parse_rule(options.pattern).density
    left_open = family in DROP_IN and layer.density == 1
    if density is not None and not left_open and abs(layer.density - density) > 1e-6:
        raise InvalidPlanError(
            f"layers ({layer.fqn}).density: pattern {options.pattern} keeps {density:.4g}, "
            f"not {layer.density:g}"
        )


def _check_nonlinearity(drop_in: DropIn, changed: bool, around: Surroundings, options: PlanOptions) -> None:
    layer, given = drop_in.layer, drop_in.nonlinearity
    where = f"layers ({layer.fqn}).nonlinearity"
    known = ("none", "follows", *NONLINEARITIES)
    if given not in known:
        raise InvalidPlanError(f"{where}: expected one of {', '.join(known)}, found {given!r}")
    if given == "follows" and layer.follows.label == "none":
        raise InvalidPlanError(f"{where}: nothing follows the layer alone; give 'none' or a name")
    if drop_in.family != "parallel":
        return
    if given == "none" and changed and options.branch_nonlinearity != "none":
        raise InvalidPlanError(
            f"{where}: no nonlinearity follows the layer alone, so its branches would be one matrix; name "
            f"one to insert: {', '.join(NONLINEARITIES)}"
        )
    if given == "follows" and (claim := around.claim_on_norm(layer)) is not None:
        raise InvalidPlanError(f"{where}: {claim}, so it cannot move into the branches; name one to insert")
