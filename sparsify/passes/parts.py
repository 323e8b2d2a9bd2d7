"""Every parameter of the rewritten model: its name, its shape, and what it comes from.

A layer of a drop-in family becomes several tensors in a container at its own path: `branches` and `norms`
(parallel), `u`, `norm` and `v` (factorized), `u`, `v` and `sparse` (doped). This table is the one place that
says so; the passes build what stands in it, and initialisation, scaling and the parameter map read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.fx import GraphModule, Node

from sparsify.errors import InvalidPlanError
from sparsify.graph.facts import Facts, LayerFacts
from sparsify.graph.traced import Traced
from sparsify.passes.wide import planned_shapes
from sparsify.planning import Plan
from sparsify.planning.schema import PlanLayer

DROP_INS = ("parallel", "factorized", "doped")
"""Families that replace a layer and leave the widths around it alone."""
Kind = Literal["whole", "branch", "u", "v", "sparse", "bias", "norm", "activation"]

OPERATORS: dict[str, torch._ops.OpOverload] = {
    "relu": torch.ops.aten.relu.default,
    "gelu": torch.ops.aten.gelu.default,
    "silu": torch.ops.aten.silu.default,
    "tanh": torch.ops.aten.tanh.default,
}


@dataclass(frozen=True)
class Inside:
    """What stands inside every branch, or between the two factors.

    Attributes:
        follows: Whether it is what follows the layer in the given model.
        norm: Whether there is a normalisation.
        operator: The activation that is inserted, None where there is none or that of the given model.
        active: Whether there is an activation, inserted or of the given model.
    """

    follows: bool
    norm: bool
    operator: torch._ops.OpOverload | None
    active: bool

    @property
    def linear(self) -> bool:
        """Whether nothing stands there."""
        return not (self.norm or self.active)


@dataclass(frozen=True)
class Part:
    """One parameter of the rewritten model.

    Attributes:
        fqn: Its path.
        origin: The parameter of the traced model that it stands for; None where it is new.
        kind: `whole` for a parameter that stays one, else which part of its layer it is.
        layer: The layer of a drop-in family that it belongs to.
        shape: Its shape.
    """

    fqn: str
    origin: str | None
    kind: Kind
    layer: PlanLayer | None
    shape: tuple[int, ...]


def container(fact: LayerFacts) -> str:
    """Path of the container that a drop-in layer becomes: its own, or beside a bare parameter."""
    return f"{fact.weight}_parts" if fact.functional else fact.fqn


def inside(layer: PlanLayer, fact: LayerFacts) -> Inside:
    """Reads the `nonlinearity` of a planned layer.

    Raises:
        InvalidPlanError: It is unknown, or says `follows` where nothing follows.
    """
    name = layer.nonlinearity
    if layer.family == "doped" and name != "none":
        raise InvalidPlanError(f"layers ({layer.fqn}).nonlinearity: a doped layer is linear, found {name!r}")
    if name == "none":
        return Inside(False, False, None, False)
    if name == "follows":
        if fact.follows.norm is None and not fact.follows.activation:
            raise InvalidPlanError(
                f"layers ({layer.fqn}).nonlinearity: nothing that reads this layer alone follows it; name "
                f"one of norm, {', '.join(OPERATORS)}, or none"
            )
        return Inside(True, fact.follows.norm is not None, None, bool(fact.follows.activation))
    first, plus, second = name.partition("+")
    activation = (second if plus else "") if first == "norm" else first if not plus else None
    if activation is None or (activation and activation not in OPERATORS) or (plus and not second):
        raise InvalidPlanError(
            f"layers ({layer.fqn}).nonlinearity: expected none, follows, norm, {', '.join(OPERATORS)} or "
            f"norm+relu, …, found {name!r}"
        )
    operator = OPERATORS[activation] if activation else None
    return Inside(False, first == "norm", operator, operator is not None)


def parts(traced: Traced, facts: Facts, plan: Plan) -> dict[str, Part]:
    """Every parameter of the rewritten model by path, tied names included."""
    shapes = planned_shapes(facts, plan)
    names = [name for name, _ in traced.module.named_parameters(remove_duplicate=False)]
    found = {name: Part(name, name, "whole", None, shapes[name]) for name in names}
    replaced = [layer for layer in plan.layers if layer.family in DROP_INS]
    if not replaced:
        return found
    by_weight = {fact.weight: fact for fact in facts.layers}
    nodes = {node.name: node for node in traced.module.graph.nodes}
    for layer in replaced:
        table = _Layer(traced.module, layer, by_weight[layer.weight], nodes, shapes)
        for name in table.dropped():
            found.pop(name, None)
        found |= {part.fqn: part for part in table.parts()}
    return found


def bias_of(module: GraphModule, fact: LayerFacts, node: Node) -> str | None:
    """Path of a layer's bias in the traced model, or None.

    Raises:
        InvalidPlanError: The bias of a functional layer is computed.
    """
    if not fact.functional:
        return (
            f"{fact.fqn}.bias" if module.get_submodule(fact.fqn)._parameters.get("bias") is not None else None
        )
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if bias is None:
        return None
    if not isinstance(bias, Node) or bias.op != "get_attr":
        raise InvalidPlanError(
            f"layers ({fact.fqn}).family: its bias is computed; keep the layer dense or wide"
        )
    return str(bias.target)


class _Layer:
    """The parameters of one drop-in layer."""

    def __init__(
        self,
        module: GraphModule,
        layer: PlanLayer,
        fact: LayerFacts,
        nodes: dict[str, Node],
        shapes: dict[str, tuple[int, ...]],
    ) -> None:
        self._module, self._layer, self._fact, self._shapes = module, layer, fact, shapes
        self._inside = inside(layer, fact)
        self._bias = bias_of(module, fact, nodes[fact.node])
        self._path = container(fact)
        self._activation = [nodes[name] for name in fact.follows.activation] if self._inside.follows else []

    def dropped(self) -> list[str]:
        """Parameters of the traced model that are no more."""
        names = [self._layer.weight, *([self._bias] if self._bias else [])]
        if self._moves_norm:
            names += [f"{self._fact.follows.norm}.{leaf}" for leaf in self._norm_leaves()]
        return names

    def parts(self) -> Iterator[Part]:
        """Parameters in their place, in the order of the plan's tensors."""
        layer = self._layer
        carriers = {"branch", "v"} if layer.family != "doped" else {"sparse"}
        for tensor in layer.tensors:
            kind: Kind = tensor.part  # type: ignore[assignment]
            yield Part(tensor.fqn, layer.weight, kind, layer, tensor.shape)
            if self._bias is not None and tensor.part in carriers:
                path = tensor.fqn.rpartition(".")[0]
                yield Part(f"{path}.bias", self._bias, "bias", layer, self._shapes[self._bias])
        if self._inside.norm and layer.family == "parallel":
            for branch in range(layer.branches):
                yield from self._norms(f"{self._path}.norms.{branch}", None)
        elif self._inside.norm:
            yield from self._norms(f"{self._path}.norm", layer.rank)
        if layer.family == "factorized":
            yield from self._slopes()

    @property
    def _moves_norm(self) -> bool:
        return self._layer.family == "parallel" and self._inside.follows and self._inside.norm

    def _norm_leaves(self) -> list[str]:
        norm = self._module.get_submodule(str(self._fact.follows.norm))
        return [leaf for leaf, value in norm._parameters.items() if value is not None]

    def _norms(self, path: str, rank: int | None) -> Iterator[Part]:
        if not self._inside.follows:
            size = rank or self._layer.shape[0]
            for leaf in ("weight", "bias"):
                yield Part(f"{path}.{leaf}", None, "norm", self._layer, (size,))
            return
        norm = self._module.get_submodule(str(self._fact.follows.norm))
        for leaf in self._norm_leaves():
            origin = f"{self._fact.follows.norm}.{leaf}"
            shape = self._shapes[origin]
            if rank is not None:
                shape = resized(norm, shape, rank, len(self._layer.shape) - 2)
            yield Part(f"{path}.{leaf}", origin, "norm", self._layer, shape)

    def _slopes(self) -> Iterator[Part]:
        """Learned slopes of an activation: the factors get some of their own."""
        called = [node for node in self._activation if node.op == "call_module"]
        for index, node in enumerate(called):
            origin = f"{node.target}.weight"
            size = self._shapes[origin][0]
            shape = (self._layer.rank if size > 1 else 1,)
            yield Part(f"{self._path}.activation.{index}.weight", origin, "activation", self._layer, shape)


def resized(norm: nn.Module, shape: tuple[int, ...], rank: int, spatial: int) -> tuple[int, ...]:
    """Shape of a normalisation's parameters over another number of channels.

    Args:
        norm: The normalisation.
        shape: Shape of its parameters, or the extents that it reduces over.
        rank: The number of channels.
        spatial: Spatial dimensions behind the channels of what it normalises.
    """
    axis = len(shape) - 1 - spatial if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) else 0
    if axis < 0:
        return shape
    return (*shape[:axis], rank, *shape[axis + 1 :])
