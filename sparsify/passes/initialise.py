"""Gives every parameter of the rebuilt model its values.

From scratch, weights are N(0, (σ·c)²) with σ the base standard deviation and c the parameterization's
`init_std` of the tensor. Biases, norm gains and other vectors keep a constant if they held one, else get the
defaults of their module. Embeddings and free parameters keep their values where their shape is that of the
base and are drawn anew at the base's mean and standard deviation where it grew. The base is the given model
unless the context holds another one. Nothing is drawn on the meta device.
"""

from __future__ import annotations

import warnings
from math import sqrt

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from sparsify.graph.facts import LayerFacts
from sparsify.passes.contract import Pass, PassResult
from sparsify.passes.draw_parts import Bases, draw_part
from sparsify.passes.initialisers import fan_in, look
from sparsify.passes.parts import parts
from sparsify.passes.preserve import fill, sheet_of, tensors_of
from sparsify.passes.randomness import generator
from sparsify.planning import Plan

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Initialise(Pass):
    """Fills every parameter; counts those whose values are new."""

    name = "initialise"

    @torch.no_grad()
    def run(self, graph: torch.fx.GraphModule, plan: Plan) -> PassResult:
        """Places the given weights and their masks, or draws; in place and one tensor at a time."""
        if self.context.init == "preserve":
            source = tensors_of(self.context.traced.module)
            return PassResult(graph, fill(graph, source, sheet_of(self.context, plan)))
        given = dict(self.context.traced.module.named_parameters())
        layers = {layer.weight: layer for layer in self.context.facts.layers}
        table = parts(self.context.traced, self.context.facts, plan)
        bases = Bases(self.context)
        modified = 0
        for name, parameter in graph.named_parameters():
            if parameter.is_meta:
                continue
            part = table[name]
            if part.layer is not None:
                fact = layers[part.layer.weight]
                draw_part(self.context, bases, part, part.layer, fact, parameter)
                modified += 1
                continue
            modified += self._fill(graph, name, parameter, given[name], layers.get(name), bases)
        for module in graph.modules():
            if isinstance(module, _NormBase):
                module.reset_running_stats()
        if bases.trained:
            _warn(bases.trained, self.context.base is not None)
        return PassResult(graph, modified)

    def ensures(self, graph: torch.fx.GraphModule, plan: Plan) -> None:
        """No value is left undefined: all are finite, since the given ones were."""
        for name, parameter in graph.named_parameters():
            drawn = parameter.is_floating_point() and parameter.numel() and not parameter.is_meta
            if drawn and not _finite(parameter):
                raise self.failed(f"{name} holds NaN or infinite values")

    def _fill(
        self,
        graph: nn.Module,
        name: str,
        parameter: Tensor,
        given: Tensor,
        layer: LayerFacts | None,
        bases: Bases,
    ) -> int:
        """Fills one parameter; returns whether its values are new."""
        owner = graph.get_submodule(name.rpartition(".")[0])
        if not parameter.is_floating_point():
            parameter.copy_(given)
            return 0
        if layer is not None and layer.kind != "embedding":
            self._draw_weight(name, parameter, bases)
            return 1
        seen = look(given)
        if seen.constant is not None:
            parameter.fill_(seen.constant)
        elif isinstance(owner, _NORMS):
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif isinstance(owner, nn.Linear | _ConvNd) and name.endswith("bias"):
            bound = 1 / sqrt(fan_in(bases.shape(name.removesuffix("bias") + "weight")))
            parameter.uniform_(-bound, bound, generator=self._generator(name, parameter))
        elif parameter.shape == given.shape == bases.shape(name):
            parameter.copy_(given)
            return 0
        else:
            mean, found = bases.moments(name)
            std = self.context.base_std.get(name, found) * self.context.scaling[name].init_std
            parameter.normal_(mean, std, generator=self._generator(name, parameter))
            _zero_padding(owner, parameter)
        return 1

    def _draw_weight(self, name: str, parameter: Tensor, bases: Bases) -> None:
        std, constant = bases.of(name)
        if constant is not None:
            parameter.fill_(constant)
            return
        scaled = std * self.context.scaling[name].init_std
        parameter.normal_(0.0, scaled, generator=self._generator(name, parameter))
        # A draw can be 0 exactly; what counts non-zero weights would miss it.
        parameter.masked_fill_(parameter == 0, scaled)

    def _generator(self, name: str, parameter: Tensor) -> torch.Generator:
        return generator(self.context.seed, "init", name, parameter.device)


def _finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite; the extremes tell, without a copy of the tensor."""
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _zero_padding(owner: nn.Module, parameter: Tensor) -> None:
    if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:
        parameter[owner.padding_idx].zero_()


def _warn(trained: list[str], of_base: bool) -> None:
    shown = ", ".join(trained[:3]) + (f" and {len(trained) - 3} more" if len(trained) > 3 else "")
    if of_base:
        warnings.warn(
            f"the base's weights look trained ({shown}), so that they do not say what they were drawn with: "
            "new weights are drawn at the default standard deviation of their module types in the base. Make "
            "the base from the freshly built small model, or give base_std=",
            UserWarning,
            stacklevel=2,
        )
        return
    warnings.warn(
        f"the given weights look trained ({shown}), and init='scratch' does not keep them: new weights are "
        "drawn at the default standard deviation of their module types (base_std= overrides it). "
        "init='preserve' keeps trained weights, in every family",
        UserWarning,
        stacklevel=2,
    )
