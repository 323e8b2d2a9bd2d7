"""Which layers become parallel, factorized or doped at their own shape, and with what numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsify.errors import BudgetError, Refusal
from sparsify.graph.facts import Facts, LayerFacts
from sparsify.graph.readers import OtherReaders
from sparsify.pattern_rules import NMRule, parse_rule
from sparsify.planning.cost import Weight
from sparsify.planning.families import Amount, DenseShape, Parts, build, parallel
from sparsify.planning.families.factorized import rank_at_width, rank_block
from sparsify.planning.schema import PlanOptions

KINDS = ("linear", "conv1d", "conv2d", "conv3d")
"""Layers that can be replaced: weights of (Dout, Din / groups, *kernel)."""


@dataclass(frozen=True)
class DropIn:
    """A layer that is replaced at its own shape.

    Attributes:
        weight: Its weight, which no other layer uses.
        family: One of `DROP_IN`.
        nonlinearity: As `PlanLayer.nonlinearity`.
    """

    weight: Weight
    family: str
    nonlinearity: str

    @property
    def layer(self) -> LayerFacts:
        """The one layer that uses the weight."""
        return self.weight.layers[0]


def root_of(layer: LayerFacts) -> str:
    """Path of the container that takes a layer's place in the rewritten model."""
    return f"{layer.weight}_parts" if layer.functional else layer.fqn


def shape_of(weight: Weight, widths: Mapping[str, int]) -> DenseShape:
    """Shape of a weight at given widths, with its convolution groups."""
    return DenseShape(weight.shape(widths), weight.layers[0].groups.evaluate(widths))


class Surroundings:
    """What lies around the layers of a model: residual dimensions, and who else reads what."""

    def __init__(self, facts: Facts, readers: OtherReaders | None = None) -> None:
        """Looks around.

        Args:
            facts: Facts of the model.
            readers: Who else reads the layers' parameters and norms; without it, only norms that two layers
                share are known.
        """
        self._readers = readers or OtherReaders()
        self._served: dict[str, list[str]] = {}
        for layer in facts.layers:
            if layer.follows.norm is not None:
                self._served.setdefault(layer.follows.norm, []).append(layer.fqn)
        self._residual = {member: group.residual for group in facts.groups for member in group.members}

    def claim_on_parameters(self, layer: LayerFacts) -> str | None:
        """Who else reads the weight or bias of a layer, or None."""
        return self._readers.of_parameters.get(layer.fqn)

    def claim_on_norm(self, layer: LayerFacts) -> str | None:
        """Whom else the normalisation behind a layer serves, or None."""
        norm = layer.follows.norm
        other = next((fqn for fqn in self._served.get(norm or "", ()) if fqn != layer.fqn), None)
        return f"{norm} also serves {other}" if other is not None else self._readers.of_norm.get(layer.fqn)

    def between_streams(self, layer: LayerFacts) -> bool:
        """Whether every width of a weight is that of a residual stream, pinned or not."""
        dims = (f"{layer.weight}[{axis}]" for axis in (0, 1))
        found = [self._residual[dim] for dim in dims if dim in self._residual]
        return bool(found) and all(found)


def choose(around: Surroundings, weight: Weight, options: PlanOptions) -> DropIn | Refusal:
    """Decides the family and the nonlinearity of one candidate, or why it is left alone.

    In `auto` a layer becomes parallel where a nonlinearity is to be had, else doped.
    """
    layer = weight.layers[0]
    if layer.kind not in KINDS:
        return Refusal(layer.fqn, "kind", f"a {layer.kind} has no {options.family} form")
    if len(weight.layers) > 1:
        names = ", ".join(one.fqn for one in weight.layers)
        reason = f"its weight is shared by {names}; only layers with a weight of their own are replaced"
        return Refusal(layer.fqn, "tied", reason)
    claim = around.claim_on_parameters(layer)
    if claim is not None:
        return Refusal(layer.fqn, "shared", f"{claim}; only layers with parameters of their own are replaced")
    if options.scope == "inner" and around.between_streams(layer):
        return Refusal(
            layer.fqn, "scope", "lies between two residual streams, which scope 'inner' leaves alone"
        )
    nonlinearity = _nonlinearity(layer, options)
    if options.family != "auto":
        family = options.family
    else:
        shared = around.claim_on_norm(layer) if nonlinearity == "follows" else None
        whole = nonlinearity != "none" and not shared and _divides(options)
        family = "parallel" if whole else "doped"
    if family == "parallel":
        return _parallel(around, weight, nonlinearity, options)
    return DropIn(weight, family, nonlinearity if family == "factorized" else "none")


def numbers(
    drop_in: DropIn, options: PlanOptions, widths: Mapping[str, int], amount: Amount
) -> Parts | Refusal:
    """The tensors of one layer, or why the amount asked for is infeasible there."""
    layer, shape = drop_in.layer, shape_of(drop_in.weight, widths)
    extents = "x".join(str(extent) for extent in shape.dims)
    where = f"{drop_in.family} at this size ({extents})"
    if drop_in.family == "parallel" and parallel.branches_of(amount) > shape.size:
        return Refusal(layer.fqn, "too-small", f"{where}: it has fewer weights than branches")
    made = build(
        drop_in.family,
        root_of(layer),
        shape,
        amount,
        rule=parse_rule(options.pattern),
        nonlinearity=drop_in.nonlinearity,
        first_only=options.sparse_factors == "first",
        reason=_reason(drop_in),
    )
    unfit = unfitting(made, options.pattern, shape.groups)
    if unfit is not None:
        return Refusal(layer.fqn, "pattern", unfit)
    problem = _problem(made, options)
    if problem is None:
        return made
    return Refusal(layer.fqn, "too-small", f"{where}: {problem}")


def amount_for(
    drop_in: DropIn, options: PlanOptions, widths: Mapping[str, int], density: float | None
) -> Amount:
    """Turns sparsity and width into density, branches and rank of one layer.

    Args:
        drop_in: The layer.
        options: The width is a number of branches, or a factor on the rank of a dense factorization.
        widths: Widths of all groups.
        density: Density asked for, None where the width alone decides.
    """
    if options.width is None or options.family == "auto":
        return Amount(density=density)
    if drop_in.family == "parallel":
        return Amount(density, round(options.width))
    block = rank_block(parse_rule(options.pattern), first_only=options.sparse_factors == "first")
    return Amount(density, rank_at_width(shape_of(drop_in.weight, widths), options.width, block))


def unfitting(made: Parts, pattern: str, groups: int) -> str | None:
    """Why some masked tensor of a layer cannot have a pattern, or None."""
    rule = parse_rule(pattern)
    for tensor in made.tensors:
        reason = rule.refusal(tensor.shape, groups) if tensor.masked else None
        if reason is not None:
            return f"pattern {rule.name}: {reason} in {tensor.fqn}"
    return None


def too_wide(drop_ins: Sequence[DropIn], options: PlanOptions, widths: Mapping[str, int]) -> BudgetError:
    """The error for a width at which no layer is left one weight in each of its tensors."""
    largest = max(_largest_width(drop_in, options, widths) for drop_in in drop_ins)
    word = "branches" if options.family == "parallel" else "times the rank of a dense factorization"
    return BudgetError(
        f"width {options.width:g} ({word}) is infeasible in every layer: at the FLOPs of the dense layer "
        f"some tensor would have no weight left. The largest feasible width is {largest:g}",
        largest_width=largest,
    )


def _largest_width(drop_in: DropIn, options: PlanOptions, widths: Mapping[str, int]) -> float:
    """Largest width, whole for branches and in hundredths for ranks, at which a layer has its numbers."""
    shape, rule = shape_of(drop_in.weight, widths), parse_rule(options.pattern)
    if drop_in.family == "parallel":
        return shape.size // max(1, rule.unit(shape.dims))
    low, high = 0, 100 * shape.size
    while low < high:
        middle = (low + high + 1) // 2
        first_only = options.sparse_factors == "first"
        block = rank_block(rule, first_only=first_only)
        amount = Amount(count=rank_at_width(shape, middle / 100, block))
        made = build(drop_in.family, "", shape, amount, rule=rule, first_only=first_only)
        low, high = (middle, high) if _problem(made, options) is None else (low, middle - 1)
    return low / 100


def _problem(made: Parts, options: PlanOptions) -> str | None:
    """Why numbers cannot be met; a width asked for must also leave every inner unit a weight each side."""
    problem = made.problem
    if problem is None and options.width is not None and made.family == "factorized":
        barren = made.rank > min(tensor.nnz for tensor in made.tensors)
        return f"some of its {made.rank} inner units would have no weight" if barren else None
    return problem


def _parallel(
    around: Surroundings, weight: Weight, nonlinearity: str, options: PlanOptions
) -> DropIn | Refusal:
    layer = weight.layers[0]
    if nonlinearity == "none" and options.branch_nonlinearity != "none":
        return Refusal(
            layer.fqn,
            "linear-branches",
            "no nonlinearity follows it alone, so its branches would be one matrix; "
            "--branch-nonlinearity inserts one",
        )
    if nonlinearity == "follows" and (claim := around.claim_on_norm(layer)) is not None:
        return Refusal(
            layer.fqn,
            "norm",
            f"{claim}, so it cannot move into the branches; --branch-nonlinearity inserts one of their own",
        )
    return DropIn(weight, "parallel", nonlinearity)


def _divides(options: PlanOptions) -> bool:
    """Whether branches of the pattern can have the FLOPs of the dense layer."""
    rule = parse_rule(options.pattern)
    return not isinstance(rule, NMRule) or rule.m % rule.n == 0


def _nonlinearity(layer: LayerFacts, options: PlanOptions) -> str:
    if options.branch_nonlinearity != "auto":
        return options.branch_nonlinearity
    return "none" if layer.follows.label == "none" else "follows"


def _reason(drop_in: DropIn) -> str:
    follows = drop_in.layer.follows.label
    inside = {"follows": follows, "none": "nothing"}.get(drop_in.nonlinearity, drop_in.nonlinearity)
    if drop_in.family == "parallel":
        return f"{drop_in.layer.role}; branches with {inside} in them"
    if drop_in.family == "factorized":
        return f"{drop_in.layer.role}; two factors with {inside} between them, learning rate untuned"
    return f"{drop_in.layer.role}; a low rank and a sparse part"
