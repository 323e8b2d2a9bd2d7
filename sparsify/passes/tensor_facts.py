"""What the scaling table needs to know of every parameter, at the planned widths and densities."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod, sqrt

import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from sparsify.graph.facts import Facts, LayerFacts
from sparsify.graph.following import evaluate
from sparsify.graph.traced import Traced
from sparsify.passes.base_model import base_tensors
from sparsify.passes.parts import Inside, Part, inside, parts
from sparsify.planning import Plan
from sparsify.planning.schema import PlanLayer, PlanTensor
from sparsify.scaling import TensorFacts
from sparsify.scaling.base import Base, BaseTensor
from sparsify.scaling.moments import branch_multiplier
from sparsify.scaling.table import Role

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# A tied weight takes the first role: a readout that shares its table still needs its forward multiplier.
_PRECEDENCE: tuple[Role, ...] = ("readout", "hidden", "grouped", "depthwise", "input", "embedding")


def tensor_facts(
    traced: Traced, facts: Facts, plan: Plan, base_model: Base | None = None
) -> tuple[TensorFacts, ...]:
    """Returns one entry for every parameter of the rewritten model, ties counted once.

    Args:
        traced: The given model.
        facts: Its facts.
        plan: A plan that fits it.
        base_model: The dense base that everything is relative to; the given model where there is none.
    """
    base = base_model if base_model is not None else Base(base_tensors(traced, facts, values=False))
    table = parts(traced, facts, plan)
    once = {name for name, _ in traced.module.named_parameters()}
    uses = _uses(facts, traced.ties)
    density = {layer.weight: layer.density for layer in plan.layers}
    rewritten: dict[str, _Rewritten] = {}
    found = []
    for part in table.values():
        if part.layer is not None:
            weight = part.layer.weight
            if weight not in rewritten:
                fact = next(fact for fact in uses[weight] if fact.weight == weight)
                rewritten[weight] = _Rewritten(traced, part.layer, fact, base[weight], plan.widths)
            found.append(rewritten[weight].fact(part))
        elif part.fqn in once:
            found.append(_whole(traced, facts, part.fqn, uses, density, base[part.fqn], plan.widths))
    return tuple(found)


def _whole(
    traced: Traced,
    facts: Facts,
    name: str,
    uses: Mapping[str, Sequence[LayerFacts]],
    density: Mapping[str, float],
    base: BaseTensor,
    widths: Mapping[str, int],
) -> TensorFacts:
    """A parameter that stays one."""
    before = base.shape
    after = tuple(dim.evaluate(widths) for dim in facts.parameters[name])
    layer = _leading(uses.get(name, []))
    if layer is None:
        return TensorFacts(name, _other_role(traced.module, name), 1, 1, prod(before), prod(after))
    role = next(role for role in _PRECEDENCE if role == _role(layer))
    if layer.role == "transposed":
        groups = layer.groups.evaluate(widths)
        (in_base, out_base), (fan_in, fan_out) = _fans_back(before, base.groups), _fans_back(after, groups)
    else:
        table = layer.kind == "embedding"
        (in_base, out_base), (fan_in, fan_out) = _fans(before, table), _fans(after, table)
    return TensorFacts(
        name, role, in_base, fan_in, out_base, fan_out, density.get(name, 1.0), layer.batchnorm_follows
    )


class _Rewritten:
    """The parameters of one layer of a drop-in family."""

    def __init__(
        self,
        traced: Traced,
        layer: PlanLayer,
        fact: LayerFacts,
        base: BaseTensor,
        widths: Mapping[str, int],
    ) -> None:
        self._layer, self._fact, self._dense = layer, fact, base.shape
        self._inside = inside(layer, fact)
        self._tensors = {tensor.fqn: tensor for tensor in layer.tensors}
        self._norm_inside = _batch_norm_inside(traced.module, layer, fact, self._inside)
        self._groups = fact.groups.evaluate(widths), base.groups
        self._c = self._multiplier(traced.module)

    def fact(self, part: Part) -> TensorFacts:
        """What the table needs to know of one of them."""
        tensor = self._tensors.get(part.fqn)
        if tensor is None:
            role: Role = "norm" if part.kind == "norm" else "bias" if part.kind == "bias" else "free"
            size = prod(part.shape)
            scaled = part.kind in ("norm", "activation") and self._layer.rank and size == self._layer.rank
            before = self._rank_base() if scaled else self._vector_base(part, size)
            return TensorFacts(part.fqn, role, 1, 1, before, size)
        return {"branch": self._branch, "u": self._u, "v": self._v, "sparse": self._sparse}[tensor.part](
            tensor
        )

    def _vector_base(self, part: Part, size: int) -> float:
        """Entries of a vector over the outputs, in the base."""
        outputs = self._layer.shape[0]
        return size * self._dense[0] / outputs if size == outputs else size

    def _branch(self, tensor: PlanTensor) -> TensorFacts:
        fact = replace(self._like_the_layer(tensor, "branch"), multiplier=self._c)
        if self._inside.linear:
            total = sum(one.nnz for one in self._layer.tensors) / prod(tensor.shape)
            return replace(fact, density=total)
        behind = fact.batchnorm_follows or self._norm_inside
        return replace(fact, branches=self._layer.branches, batchnorm_follows=behind)

    def _sparse(self, tensor: PlanTensor) -> TensorFacts:
        role: Role = "grouped" if self._fact.role == "grouped" else "hidden"
        return replace(self._like_the_layer(tensor, role), multiplier=sqrt(0.5))

    def _like_the_layer(self, tensor: PlanTensor, role: Role) -> TensorFacts:
        in_base, out_base = _fans(self._dense, False)
        fan_in, fan_out = _fans(tensor.shape, False)
        density = tensor.nnz / prod(tensor.shape)
        behind = self._fact.batchnorm_follows
        return TensorFacts(tensor.fqn, role, in_base, fan_in, out_base, fan_out, density, behind)

    def _u(self, tensor: PlanTensor) -> TensorFacts:
        fan_in, fan_out = _fans(tensor.shape, False)
        in_base = _fans(self._dense, False)[0]
        behind = self._norm_inside or (self._inside.linear and self._fact.batchnorm_follows)
        return self._factor(tensor, in_base, fan_in, self._rank_base(), fan_out, behind)

    def _v(self, tensor: PlanTensor) -> TensorFacts:
        fan_in, fan_out = _fans(tensor.shape, False)
        out_base = self._dense[0]
        in_base = self._rank_base() / self._groups[1]
        return self._factor(tensor, in_base, fan_in, out_base, fan_out, self._fact.batchnorm_follows)

    def _factor(
        self, tensor: PlanTensor, in_base: float, fan_in: int, out_base: float, fan_out: int, behind: bool
    ) -> TensorFacts:
        doped = self._layer.family == "doped"
        return TensorFacts(
            tensor.fqn,
            "factor",
            in_base,
            fan_in,
            out_base,
            fan_out,
            tensor.nnz / prod(tensor.shape),
            behind,
            multiplier=sqrt(0.5) if doped and tensor.part == "u" else 1.0,
            untuned=not doped,
        )

    def _rank_base(self) -> float:
        """Rank in the dense model of the same form.

        Of a factorized layer that is the dense factorization with the layer's FLOPs; a doped layer has its
        own rank there, less what its widths grew by.
        """
        base = _even_rank(self._dense, self._groups[1])
        if self._layer.family == "factorized":
            return base
        return self._layer.rank * base / _even_rank(self._layer.shape, self._groups[0])

    def _multiplier(self, module: torch.fx.GraphModule) -> float:
        """c, where the layer's branches have a nonlinearity."""
        if self._layer.family != "parallel" or self._inside.linear:
            return 1.0
        operator = self._inside.operator
        activation: Callable[[Tensor], Tensor] | None = operator
        if self._inside.follows and self._inside.active:
            names = self._fact.follows.activation

            def activation(x: Tensor) -> Tensor:
                return evaluate(module, names, x)

        return branch_multiplier(self._layer.branches, activation)


def _even_rank(shape: tuple[int, ...], groups: int) -> float:
    """Rank at which two dense factors have as many weights as the layer: Din·Dout/(Din+Dout), per group."""
    inputs, outputs = prod(shape[1:]), shape[0] / groups
    return groups * inputs * outputs / (inputs + outputs)


def _batch_norm_inside(
    module: torch.fx.GraphModule, layer: PlanLayer, fact: LayerFacts, within: Inside
) -> bool:
    """Whether the normalisation inside takes its statistics over the batch."""
    if not within.norm:
        return False
    if not within.follows:
        return layer.kind != "linear"
    return isinstance(module.get_submodule(str(fact.follows.norm)), _BatchNorm)


def _uses(facts: Facts, ties: Sequence[Sequence[str]]) -> dict[str, list[LayerFacts]]:
    uses: dict[str, list[LayerFacts]] = {}
    names = {name: tie for tie in ties for name in tie}
    for layer in facts.layers:
        for name in names.get(layer.weight, (layer.weight,)):
            uses.setdefault(name, []).append(layer)
    return uses


def _leading(layers: Sequence[LayerFacts]) -> LayerFacts | None:
    ranked = [layer for role in _PRECEDENCE for layer in layers if _role(layer) == role]
    return ranked[0] if ranked else None


def _role(layer: LayerFacts) -> str:
    """A transposed convolution follows the table as a hidden layer, with its own fans."""
    return "hidden" if layer.role == "transposed" else layer.role


def _fans(shape: tuple[int, ...], table: bool) -> tuple[int, int]:
    """Fan-in and fan-out of a weight; an embedding's rows are its inputs."""
    if table:
        return shape[0], shape[1]
    return max(1, prod(shape[1:])), shape[0]


def _fans_back(shape: tuple[int, ...], groups: int) -> tuple[int, int]:
    """Fans of a transposed convolution's weight [in, out/groups, *kernel]."""
    return max(1, shape[0] // groups * prod(shape[2:])), shape[1] * groups


def _other_role(module: torch.fx.GraphModule, name: str) -> Role:
    path, _, leaf = name.rpartition(".")
    if isinstance(module.get_submodule(path), _NORMS):
        return "norm"
    return "bias" if leaf == "bias" else "free"
