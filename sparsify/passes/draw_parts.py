"""First values of what a layer of a drop-in family became, from scratch.

A branch and the sparse part of a doped layer are drawn as the layer was, at its base standard deviation σ
times the parameterization's `init_std`. Factors take the same rule over to their fans. U, whose fan-in is the
layer's, is drawn at σ, or at 1/√fan_in where nothing stands between U and V: then Uᵀx has the variance of x.
V is drawn at σ·√(fan_in of the layer / fan_in of V): torch's default at its own fan-in, where σ is torch's
default. So without a nonlinearity VᵀUᵀx has the variance of the layer's output.
"""

from __future__ import annotations

from math import sqrt

from torch import Tensor

from sparsify.graph.facts import LayerFacts
from sparsify.passes.contract import Context
from sparsify.passes.initialisers import default_std, fan_in, look, untrained
from sparsify.passes.parts import Part, inside
from sparsify.passes.randomness import generator
from sparsify.planning.schema import PlanLayer
from sparsify.scaling.base import BaseTensor


class Bases:
    """What the weights of the base were drawn with: of the given model, or of the one that `base` describes.

    Attributes:
        trained: Weights that look trained, whose standard deviation says nothing; filled as they are met.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._given = dict(context.traced.module.named_parameters(remove_duplicate=False))
        self._known: dict[str, tuple[float, float | None]] = {}
        self.trained: list[str] = []

    def of(self, name: str) -> tuple[float, float | None]:
        """Standard deviation of a weight before scaling; and its value, where all entries have one.

        Args:
            name: The weight in the given model, or a vector or table of it.
        """
        if name not in self._known:
            self._known[name] = self._look(name)
        return self._known[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter in the base."""
        base = self._context.base
        return tuple(self._given[name].shape) if base is None else base[name].shape

    def moments(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of a table or free parameter, whatever they look like."""
        base = self._context.base
        if base is not None:
            one = base[name]
            return one.mean, one.std or 0.0
        seen = look(self._given[name])
        certain = abs(seen.mean) > 5 * seen.std / sqrt(seen.count)
        return (seen.mean if certain else 0.0), seen.std

    def _look(self, name: str) -> tuple[float, float | None]:
        given = self._given[name]
        shape = self.shape(name)
        asked = self._context.base_std.get(name)
        if asked is not None:
            return asked, None
        if self._context.base is not None:
            return self._recorded(self._context.base[name])
        seen = look(given)
        if seen.constant is not None:
            return default_std(None, shape), seen.constant
        if untrained(seen, shape):
            return seen.std, None
        self.trained.append(name)
        return default_std(None, shape), None

    def _recorded(self, one: BaseTensor) -> tuple[float, float | None]:
        """The same of a base that is only described."""
        if one.std is not None:
            return one.std, None
        if one.constant is None:
            self.trained.append(one.fqn)
        return default_std(None, one.shape), one.constant


def draw_part(
    context: Context, bases: Bases, part: Part, layer: PlanLayer, fact: LayerFacts, parameter: Tensor
) -> None:
    """Fills one parameter of a drop-in layer in place.

    Args:
        context: The rewrite.
        bases: What the given weights were drawn with.
        part: Which parameter it is.
        layer: What becomes of its layer.
        fact: The layer in the given model.
        parameter: The tensor to fill.
    """
    if part.kind in ("norm", "activation"):
        parameter.fill_(_vector(context, part))
    elif part.kind == "bias":
        _draw_bias(context, bases, part, layer, fact, parameter)
    else:
        _draw_weight(context, bases, part, layer, fact, parameter)


def _draw_weight(
    context: Context, bases: Bases, part: Part, layer: PlanLayer, fact: LayerFacts, parameter: Tensor
) -> None:
    sigma, constant = bases.of(fact.weight)
    if constant is not None and (part.kind in ("branch", "sparse") or (part.kind == "v" and constant == 0)):
        parameter.fill_(constant)
        return
    base_fan_in = fan_in(bases.shape(fact.weight))
    scale = context.scaling[part.fqn]
    if part.kind == "u" and inside(layer, fact).linear:
        sigma = 1 / sqrt(base_fan_in)
    elif part.kind == "v":
        sigma *= sqrt(base_fan_in * scale.m_in / fan_in(part.shape))
    source = generator(context.seed, "init", part.fqn, parameter.device)
    parameter.normal_(0.0, sigma * scale.init_std, generator=source)


def _draw_bias(
    context: Context, bases: Bases, part: Part, layer: PlanLayer, fact: LayerFacts, parameter: Tensor
) -> None:
    """As the layer's own was: constant if it was, else at the default of its module."""
    seen = look(context.traced.module.get_parameter(str(part.origin)))
    if seen.constant is not None:
        summed = layer.family == "parallel" and layer.nonlinearity == "none"
        parameter.fill_(seen.constant / (layer.branches if summed else 1))
        return
    bound = 1 / sqrt(fan_in(bases.shape(fact.weight)))
    source = generator(context.seed, "init", part.fqn, parameter.device)
    parameter.uniform_(-bound, bound, generator=source)


def _vector(context: Context, part: Part) -> float:
    """The constant that a gain, a shift or a slope starts with."""
    if part.origin is not None:
        seen = look(context.traced.module.get_parameter(part.origin))
        if seen.constant is not None:
            return seen.constant
        if part.kind == "activation":
            return seen.mean
    return 1.0 if part.fqn.endswith("weight") else 0.0
