"""Dense weights in drop-in layers, and back: one layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.masks import Pattern, Unstructured, set_mask, topk_mask
from sparsify.passes import decompose
from sparsify.passes.preserve_patterns import branches, chooser
from sparsify.passes.randomness import generator
from sparsify.planning.schema import PlanLayer, PlanTensor


@dataclass(frozen=True)
class Filling:
    """How drop-in layers are filled.

    Attributes:
        seed: Seed of what is drawn.
        share: Share of the masks of factors for inner units that hold nothing.
        pattern: The pattern of every mask.
    """

    seed: int
    share: float
    pattern: Pattern


def place_layer(
    graph: nn.Module,
    layer: PlanLayer,
    source: Mapping[str, Tensor],
    sources: Mapping[str, str],
    filling: Filling,
    forward: float,
) -> int:
    """Fills the tensors of one drop-in layer and sets their masks.

    Args:
        graph: The rewritten model.
        layer: The layer, linear inside.
        source: The dense model's tensors.
        sources: New parameter names and the dense ones that they stand for.
        filling: How.
        forward: What a doped layer's input is multiplied by.

    Returns:
        Number of tensors filled.
    """
    weight = source[layer.weight]
    random = generator(filling.seed, "split", layer.weight, weight.device)
    if layer.family == "parallel":
        _branches(graph, layer, weight, random, filling.pattern)
    elif layer.family == "doped":
        _doped(graph, layer, weight / forward if forward != 1.0 else weight, filling.pattern)
    else:
        _factorized(graph, layer, weight, filling, random)
    return len(layer.tensors) + _biases(graph, layer, source, sources)


def merged(graph: nn.Module, layer: PlanLayer, forward: float) -> Tensor:
    """The dense weight that a drop-in layer without nonlinearity computes with."""
    parts = [(tensor, graph.get_parameter(tensor.fqn).detach()) for tensor in layer.tensors]
    if layer.family == "parallel":
        total = torch.zeros_like(parts[0][1])
        for _, weight in parts:
            total += weight
        return total
    by_part = {tensor.part: weight for tensor, weight in parts}
    groups = conv_groups(graph, layer)
    pairs = zip(by_part["u"].chunk(groups), by_part["v"].chunk(groups), strict=True)
    whole = torch.cat([v.flatten(1) @ u.flatten(1) for u, v in pairs]).reshape(layer.shape)
    return (whole + by_part["sparse"]) * forward if layer.family == "doped" else whole


def bias_names(graph: nn.Module, layer: PlanLayer) -> list[str]:
    """Paths of the biases of a drop-in layer's modules."""
    paths = [tensor.fqn.rpartition(".")[0] for tensor in layer.tensors]
    return [f"{path}.bias" for path in paths if graph.get_submodule(path)._parameters.get("bias") is not None]


def conv_groups(graph: nn.Module, layer: PlanLayer) -> int:
    """Convolution groups of a drop-in layer; 1 for a linear one."""
    return int(getattr(graph.get_submodule(layer.tensors[0].fqn.rpartition(".")[0]), "groups", 1))


def _biases(
    graph: nn.Module, layer: PlanLayer, source: Mapping[str, Tensor], sources: Mapping[str, str]
) -> int:
    names = bias_names(graph, layer)
    for name in names:
        graph.get_parameter(name).copy_(source[sources[name]] / len(names))
    return len(names)


def _branches(
    graph: nn.Module, layer: PlanLayer, weight: Tensor, random: torch.Generator, pattern: Pattern
) -> None:
    made = branches(weight, [tensor.nnz for tensor in layer.tensors], pattern, random)
    for tensor, (values, mask) in zip(layer.tensors, made, strict=True):
        _put(graph, tensor, values, mask)


def _doped(graph: nn.Module, layer: PlanLayer, weight: Tensor, pattern: Pattern) -> None:
    by_part = {tensor.part: tensor for tensor in layer.tensors}
    groups = conv_groups(graph, layer)
    shape = _block(by_part["sparse"], groups)
    counts = _split(by_part["sparse"].nnz, groups, pattern.unit(shape))
    choose = chooser(pattern, shape)
    made = [
        decompose.doped(block.flatten(1).float(), layer.rank // groups, count, choose)
        for block, count in zip(weight.chunk(groups), counts, strict=True)
    ]
    _put(graph, by_part["u"], torch.cat([factors.u for factors, _, _ in made]), None)
    _put(graph, by_part["v"], torch.cat([factors.v for factors, _, _ in made]), None)
    mask = torch.cat([mask for _, _, mask in made])
    _put(graph, by_part["sparse"], torch.cat([sparse for _, sparse, _ in made]), mask)


def _factorized(
    graph: nn.Module, layer: PlanLayer, weight: Tensor, filling: Filling, random: torch.Generator
) -> None:
    u, v = layer.tensors
    groups, pattern = conv_groups(graph, layer), filling.pattern
    shapes = [_block(tensor, groups) for tensor in (u, v)]
    pairs = zip(
        *(
            _split(tensor.nnz, groups, pattern.unit(shape) if tensor.masked else 1)
            for tensor, shape in zip((u, v), shapes, strict=True)
        ),
        strict=True,
    )
    free = isinstance(pattern, Unstructured)
    choose = None if free else (chooser(pattern, shapes[0]), chooser(pattern, shapes[1]))
    if choose is not None and not v.masked:
        choose = (choose[0], topk_mask)
    made = [
        decompose.factorized(
            block.flatten(1).float(),
            layer.rank // groups,
            pair,
            share=filling.share,
            generator=random,
            choose=choose,
        )
        for block, pair in zip(weight.chunk(groups), pairs, strict=True)
    ]
    _put(graph, u, torch.cat([one.u for one in made]), torch.cat([one.u_mask for one in made]))
    _put(graph, v, torch.cat([one.v for one in made]), torch.cat([one.v_mask for one in made]))


def _put(graph: nn.Module, tensor: PlanTensor, values: Tensor, mask: Tensor | None) -> None:
    path, _, leaf = tensor.fqn.rpartition(".")
    graph.get_parameter(tensor.fqn).copy_(values.reshape(tensor.shape))
    if tensor.masked and mask is not None:
        set_mask(graph.get_submodule(path), leaf, mask.reshape(tensor.shape))


def _block(tensor: PlanTensor, groups: int) -> tuple[int, ...]:
    """Shape of one convolution group of a weight."""
    return (tensor.shape[0] // groups, *tensor.shape[1:])


def _split(total: int, groups: int, unit: int) -> Sequence[int]:
    """A count over convolution groups in units of the pattern, as even as it goes."""
    if unit == 0:
        return [total // groups] * groups
    each, more = divmod(total // unit, groups)
    return [unit * (each + (index < more)) for index in range(groups)]
