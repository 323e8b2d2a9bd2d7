"""What scaling needs to know of a traced dense model as a base."""

from __future__ import annotations

from math import isnan, sqrt

from torch import Tensor, nn

from sparsify.graph.facts import Facts, LayerFacts
from sparsify.graph.facts import facts as facts_of
from sparsify.graph.traced import Traced
from sparsify.passes.attention import attentions
from sparsify.passes.initialisers import look, untrained
from sparsify.scaling.base import Base, BaseAttention, BaseTensor


def base_of(traced: Traced, facts: Facts | None = None, *, values: bool = True) -> Base:
    """Describes a dense model as a base.

    Args:
        traced: The model.
        facts: Its facts, where they are known already.
        values: Whether to look at weights; without, only names, shapes and roles are filled in.
    """
    known = facts if facts is not None else facts_of(traced)
    found = attentions(traced.module)
    return Base(
        base_tensors(traced, known, values=values),
        tuple(BaseAttention(one.head_size, None if isnan(one.scale) else one.scale) for one in found),
    )


def base_tensors(traced: Traced, facts: Facts, *, values: bool = True) -> tuple[BaseTensor, ...]:
    """Describes the parameters of a dense model, under each of their names.

    Args:
        traced: The model.
        facts: Its facts.
        values: As for `base_of`.
    """
    sizes = {group.id: group.size for group in facts.groups}
    layers = {layer.weight: layer for layer in reversed(facts.layers)}
    parameters = traced.module.named_parameters(remove_duplicate=False)
    return tuple(_tensor(name, tensor, layers.get(name), sizes, values) for name, tensor in parameters)


def _tensor(
    name: str, parameter: nn.Parameter, layer: LayerFacts | None, sizes: dict[str, int], values: bool
) -> BaseTensor:
    shape = tuple(parameter.shape)
    role, groups = ("", 1) if layer is None else (layer.role, layer.groups.evaluate(sizes))
    plain = BaseTensor(name, shape, role, groups)
    if not values or parameter.is_meta or not parameter.is_floating_point():
        return plain
    return _looked_at(plain, parameter)


def _looked_at(plain: BaseTensor, parameter: Tensor) -> BaseTensor:
    seen = look(parameter)
    drawn = plain.role in ("", "embedding") or untrained(seen, plain.shape)
    return BaseTensor(
        plain.fqn,
        plain.shape,
        plain.role,
        plain.groups,
        constant=seen.constant,
        mean=seen.mean if abs(seen.mean) > 5 * seen.std / sqrt(seen.count or 1) else 0.0,
        std=seen.std if drawn and seen.constant is None else None,
    )
