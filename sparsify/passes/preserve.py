"""Puts a dense model's weights into the rewritten one, which starts as close to it as its budget allows.

Old units keep their place in every section of every dimension; units that are new feed nothing at the start.
Norms over a widened dimension see zeros in the new channels: a root mean square over k times as many entries
is smaller by √k, so the gain is divided by √k (exact for RMSNorm up to its ε, close for LayerNorm and
GroupNorm). A readout's forward multiplier and the 1/√2 of a doped layer are divided out of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparsify.errors import UserError
from sparsify.masks.exact import magnitude_mask
from sparsify.masks.patterns import Pattern, parse_pattern
from sparsify.masks.state import SUFFIX, masked_parameters, set_mask
from sparsify.masks.unstructured import Unstructured
from sparsify.passes.contract import Context
from sparsify.passes.dense import DenseTensor, corner, dense_tensors
from sparsify.passes.gains import norm_gains
from sparsify.passes.parts import DROP_INS, parts
from sparsify.passes.preserve_parts import Filling, place_layer
from sparsify.passes.preserve_patterns import place_patterned
from sparsify.passes.preserve_wide import place_masked, place_plain
from sparsify.passes.randomness import generator
from sparsify.pattern_rules import BlocksRule, parse_rule
from sparsify.planning import Plan
from sparsify.planning.schema import PlanLayer
from sparsify.scaling import Scaling

DEFAULT_NEW_CONNECTIONS = 0.05


@dataclass(frozen=True)
class Sheet:
    """What is needed to place dense weights, in a model just rewritten or one loaded from a file.

    Attributes:
        plan: The plan.
        scaling: The multipliers.
        dense: The tensors of the dense model, by name.
        sources: New parameter names and the dense ones that they stand for.
        seed: Seed of new connections and of branches.
        new_connections: Share of each mask that goes to new units.
    """

    plan: Plan
    scaling: Scaling
    dense: Mapping[str, DenseTensor]
    sources: Mapping[str, str]
    seed: int
    new_connections: float

    @property
    def pattern(self) -> Pattern:
        """The pattern of every planned mask."""
        return parse_pattern(self.plan.options.pattern)

    def layer_of(self, graph: nn.Module) -> dict[int, PlanLayer]:
        """Planned layers that stay one tensor, by the identity of their weight, ties included."""
        parameters = dict(graph.named_parameters(remove_duplicate=False))
        kept = [layer for layer in self.plan.layers if layer.family not in DROP_INS]
        return {id(parameters[layer.weight]): layer for layer in kept if layer.weight in parameters}

    def forward(self, graph: nn.Module, name: str) -> float:
        """Forward multiplier of a parameter, under any of its names."""
        if name in self.scaling:
            return self.scaling[name].forward
        parameters = dict(graph.named_parameters(remove_duplicate=False))
        names = (other for other, one in parameters.items() if one is parameters.get(name))
        return next((self.scaling[other].forward for other in names if other in self.scaling), 1.0)

    def reduced(self, gains: Iterable[str]) -> frozenset[str]:
        """Widths over which norms with these gains reduce."""
        known = (self.dense[name] for name in gains if name in self.dense)
        return frozenset(s for tensor in known for layout in tensor.layouts for s in layout.size.symbols)


def sheet_of(context: Context, plan: Plan) -> Sheet:
    """The sheet of a rewrite."""
    table = parts(context.traced, context.facts, plan)
    return Sheet(
        plan=plan,
        scaling=context.scaling,
        dense={tensor.name: tensor for tensor in dense_tensors(context.traced, context.facts)},
        sources={name: part.origin for name, part in table.items() if part.origin is not None},
        seed=context.seed,
        new_connections=context.new_connections,
    )


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter, buffer and mask of a model by every name that it has."""
    found = {name: parameter.detach() for name, parameter in module.named_parameters(remove_duplicate=False)}
    return found | dict(module.named_buffers(remove_duplicate=False))


def plan_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a plan for given weights, where the user does not say otherwise.

    Every layer has as many weights as in the dense model, and with `scope="inner"` heads do not grow: then
    all old weights find a place. Branches and factors are linear, since others cannot hold given weights.
    """
    chosen = dict(options)
    if parse_rule(chosen.get("pattern", "unstructured")).density is None:
        chosen = {"distribution": "as-dense", **options}
    if chosen.get("scope") == "inner":
        chosen.setdefault("heads", False)
    if chosen.get("family") in ("parallel", "factorized", "auto"):
        chosen.setdefault("branch_nonlinearity", "none")
    return chosen


def check_preservable(plan: Plan, new_connections: float) -> None:
    """Checks that a plan's layers can hold given weights.

    Raises:
        UserError: A layer has a nonlinearity inside or is factorized in blocks, or the share is out of range.
    """
    if not 0 <= new_connections < 1:
        raise UserError(f"new_connections must lie in [0, 1), got {new_connections}")
    blocks = isinstance(parse_rule(plan.options.pattern), BlocksRule)
    for layer in plan.layers:
        if layer.family == "factorized" and blocks:
            raise UserError(
                f"init='preserve': layer {layer.fqn!r} is factorized under pattern {plan.options.pattern!r}; "
                "blocks leave no place for the inner units that given weights need: take pattern "
                "'unstructured', 'fan-in' or N:M, family 'parallel' or 'doped', or init='scratch'"
            )
        if layer.family in ("parallel", "factorized") and layer.nonlinearity != "none":
            inside = "in its branches" if layer.family == "parallel" else "between its factors"
            raise UserError(
                f"init='preserve': layer {layer.fqn!r} is {layer.family} with a nonlinearity "
                f"({layer.nonlinearity}) {inside}, so no choice of weights makes it the dense layer; take "
                "branch_nonlinearity='none', keep the layer dense, or use init='scratch'"
            )


def without_tied_multipliers(scaling: Scaling, ties: tuple[tuple[str, ...], ...]) -> Scaling:
    """Leaves out the forward multiplier of a readout that shares its weights with an embedding.

    Such a multiplier could only be made up for in the weights, which the embedding reads too.
    """
    tied = {name for tie in ties for name in tie}
    tensors = tuple(
        replace(one, forward=1.0) if one.fqn in tied and one.role == "readout" else one
        for one in scaling.tensors
    )
    return replace(scaling, tensors=tensors)


@torch.no_grad()
def fill(graph: nn.Module, source: Mapping[str, Tensor], sheet: Sheet) -> int:
    """Fills every parameter, buffer and mask of a rewritten model from a dense one, in place.

    Args:
        graph: The rewritten model.
        source: Tensors of the dense model by its traced names; masks it had, as `<name>_mask`.
        sheet: What goes where.

    Returns:
        Number of tensors filled.

    Raises:
        UnsupportedModelError: The order of a growing dimension is not known.
    """
    if any(tensor.is_meta for tensor in source.values()):
        return 0
    done = 0
    for layer in sheet.plan.layers:
        if layer.family in DROP_INS:
            forward = sheet.forward(graph, layer.tensors[-1].fqn) if layer.family == "doped" else 1.0
            filling = Filling(sheet.seed, sheet.new_connections, sheet.pattern)
            done += place_layer(graph, layer, source, sheet.sources, filling, forward)
    inside = tuple(
        tensor.fqn.rpartition(".")[0] + "."
        for layer in sheet.plan.layers
        if layer.family in DROP_INS
        for tensor in layer.tensors
    )
    placer = _Placer(graph, source, sheet)
    for name, parameter in graph.named_parameters():
        if name in sheet.dense and not name.startswith(inside):
            placer.parameter(name, parameter)
            done += 1
    for name, buffer in graph.named_buffers():
        if name in sheet.dense:
            fill_value = 1 if name.endswith("running_var") else 0
            place_plain(buffer, source[name], sheet.dense[name].places(sheet.plan), fill_value)
            done += 1
    return done


class _Placer:
    """Places parameters that stay one tensor each."""

    def __init__(self, graph: nn.Module, source: Mapping[str, Tensor], sheet: Sheet) -> None:
        self._graph, self._source, self._sheet = graph, source, sheet
        self._layers = sheet.layer_of(graph)
        self._gains = norm_gains(graph)
        self._reduced = sheet.reduced(self._gains)
        self._masked = {id(entry.param) for entry in masked_parameters(graph).values()}

    def parameter(self, name: str, parameter: nn.Parameter) -> None:
        """Places one parameter and its mask."""
        path, _, leaf = name.rpartition(".")
        owner, sheet = self._graph.get_submodule(path), self._sheet
        old, places = self._source[name], sheet.dense[name].places(sheet.plan)
        layer = self._layers.get(id(parameter))
        grown = any(place is not None for place in places)
        forward = sheet.forward(self._graph, name)
        if id(parameter) in self._masked:
            del owner._buffers[leaf + SUFFIX]
        if layer is not None and layer.masked:
            self._planned(name, parameter, old / forward if forward != 1.0 else old, places, layer.nnz)
            return
        if name in self._gains and grown:
            gain = sqrt(old.numel() / parameter.numel())
            place_plain(parameter, old * gain, places, gain)
        elif self._is_layer(owner, leaf, layer) and grown:
            self._dense_layer(name, parameter, old / forward, places)
        else:
            fill_value = 0.25 if isinstance(owner, nn.PReLU) else 1 if self._is_gain(owner, leaf) else 0
            place_plain(parameter, old / forward if forward != 1.0 else old, places, fill_value)
        self._given_mask(name, parameter, places)

    def _planned(
        self,
        name: str,
        parameter: nn.Parameter,
        old: Tensor,
        places: tuple[Tensor | None, ...],
        nnz: int,
    ) -> None:
        path, _, leaf = name.rpartition(".")
        pattern, share = self._sheet.pattern, self._sheet.new_connections
        free = isinstance(pattern, Unstructured)
        if all(place is None for place in places):
            parameter.copy_(old)
            if free:
                mask = magnitude_mask(parameter, nnz)
            else:
                mask = pattern.mask_from_scores(parameter.detach().abs(), nnz)
        else:
            source = generator(self._sheet.seed, "connect", name, parameter.device)
            if free:
                mask = place_masked(parameter, old, places, nnz, share, source)
            else:
                mask = place_patterned(parameter, old, places, nnz, share, source, pattern)
        set_mask(self._graph.get_submodule(path), leaf, mask)

    def _dense_layer(
        self, name: str, parameter: nn.Parameter, old: Tensor, places: tuple[Tensor | None, ...]
    ) -> None:
        """A layer without a mask: new outputs read the old inputs, unless a norm reduces over them."""
        place_plain(parameter, old, places, 0)
        owner = self._graph.get_submodule(name.rpartition(".")[0])
        axis = 1 if isinstance(owner, _ConvNd) and owner.transposed else 0
        place = places[axis]
        widths = self._sheet.dense[name].layouts[axis].size.symbols
        if place is None or not self._sheet.new_connections or widths & self._reduced:
            return
        drawn = torch.empty_like(parameter)
        source = generator(self._sheet.seed, "connect", name, parameter.device)
        drawn.normal_(0.0, float(old.float().std()), generator=source)
        drawn.index_fill_(axis, place.to(parameter.device), 0)
        other = places[1 - axis]
        if other is not None:
            fed = torch.zeros(parameter.shape[1 - axis], dtype=torch.bool, device=parameter.device)
            fed[other] = True
            drawn.index_fill_(1 - axis, (~fed).nonzero().reshape(-1), 0)
        parameter.add_(drawn)

    def _given_mask(self, name: str, parameter: nn.Parameter, places: tuple[Tensor | None, ...]) -> None:
        """A mask that the dense model came with stays where its weights are."""
        given = self._source.get(name + SUFFIX)
        if given is None or id(parameter) not in self._masked:
            return
        mask = parameter.detach() != 0
        mask[corner(places, tuple(given.shape))] = given.to(mask.device)
        path, _, leaf = name.rpartition(".")
        set_mask(self._graph.get_submodule(path), leaf, mask)

    def _is_layer(self, owner: nn.Module, leaf: str, layer: PlanLayer | None) -> bool:
        if isinstance(owner, nn.Embedding):
            return False
        return layer is not None or (isinstance(owner, nn.Linear | _ConvNd) and leaf == "weight")

    def _is_gain(self, owner: nn.Module, leaf: str) -> bool:
        return isinstance(owner, nn.modules.batchnorm._NormBase) and leaf == "weight"
