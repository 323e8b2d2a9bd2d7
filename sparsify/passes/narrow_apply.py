"""Takes units out of a model: a copy with smaller tensors, and constants in the biases of what read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd

from sparsify.errors import SparsifyError
from sparsify.graph.canonical import complete
from sparsify.graph.dead_units import Reader, taken_over
from sparsify.graph.facts import Facts
from sparsify.graph.resize import match_parameters
from sparsify.graph.units import Units, is_gone
from sparsify.graph.verify import propagate, with_literal
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import SUFFIX, attach_hooks


def take_out(
    module: GraphModule, facts: Facts, units: Units, removed: Tensor, readers: Sequence[Reader]
) -> SparseGraphModule:
    """A copy of a model without some of its units.

    Args:
        module: Canonical graph module; left as it is, nothing is shared with it.
        facts: Its facts.
        units: Its units.
        removed: Bool, one entry a unit.
        readers: What reads them.

    Raises:
        SparsifyError: Shapes do not come out as the facts foretell, which is a fault of this package.
    """
    widths = remaining(facts, units, removed)
    kept = {place: torch.nonzero(~is_gone(ids, removed)).flatten() for place, ids in units.places.items()}
    with torch.no_grad():
        biases = _biases(module, removed, readers)
        result = _copied(module, _tensors(module, kept, biases))
        _create_biases(result, module, kept, biases)
    _check_shapes(result, facts, widths)
    _match_modules(result, facts, widths)
    _rewrite_literals(result, facts, widths)
    result.recompile()
    propagate(result)
    attach_hooks(result)
    return result


def remaining(facts: Facts, units: Units, removed: Tensor) -> dict[str, int]:
    """Size of every group without the removed units."""
    sizes = {group.id: group.size for group in facts.groups}
    for place in torch.nonzero(removed).flatten().tolist():
        sizes[units.units[place].group] -= len(units.units[place].numbers)
    return sizes


def _biases(module: GraphModule, removed: Tensor, readers: Sequence[Reader]) -> dict[str, Tensor]:
    """New bias [out] of every layer that takes over constants, before outputs are taken away."""
    biases: dict[str, Tensor] = {}
    for reader in readers:
        if reader.path is None or reader.path in biases:
            continue
        layer: Any = module.get_submodule(reader.path)
        if getattr(layer, "transposed", False):
            continue  # takes over nothing but zeros
        added = taken_over(reader, layer.weight, removed)
        if bool(added.any()):
            bias = torch.zeros_like(added) if layer.bias is None else layer.bias.double()
            biases[reader.path] = (bias + added).to(layer.weight.dtype)
    return biases


def _selected(tensor: Tensor, name: str, kept: Mapping[tuple[str, int], Tensor]) -> Tensor:
    for axis in range(tensor.ndim):
        if (name, axis) in kept:
            tensor = tensor.index_select(axis, kept[name, axis].to(tensor.device))
    return tensor


def _tensors(
    module: GraphModule, kept: Mapping[tuple[str, int], Tensor], biases: Mapping[str, Tensor]
) -> dict[int, Any]:
    """Every parameter and buffer as it will be, by the identity of the one that it replaces."""
    made: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        path, _, leaf = name.rpartition(".")
        value = biases[path] if leaf == "bias" and path in biases else parameter.detach()
        value = _selected(value, name, kept).clone(memory_format=torch.contiguous_format)
        made[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        owner = name.removesuffix(SUFFIX)
        narrowed = _selected(buffer.detach(), owner, kept).clone()
        path, _, leaf = owner.rpartition(".")
        if name.endswith(SUFFIX) and leaf == "bias" and path in biases:
            narrowed |= _selected(biases[path], owner, kept) != 0
        made[id(buffer)] = narrowed
    return made


def _copied(module: GraphModule, replaced: dict[int, Any]) -> SparseGraphModule:
    """The same structure with other tensors in it; what was tied stays tied."""
    root = nn.Module()
    root._modules = copy.deepcopy(module._modules, replaced)
    root._parameters = copy.deepcopy(module._parameters, replaced)
    root._buffers = copy.deepcopy(module._buffers, replaced)
    root._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    result = SparseGraphModule(root, copy.deepcopy(module.graph))
    complete(result, root)
    result.training = module.training
    return result


def _create_biases(
    result: nn.Module,
    module: GraphModule,
    kept: Mapping[tuple[str, int], Tensor],
    biases: Mapping[str, Tensor],
) -> None:
    """Gives a bias to layers that had none and have a constant to add."""
    for path, bias in biases.items():
        layer: Any = result.get_submodule(path)
        if layer.bias is None:
            rows = kept.get((f"{path}.weight", 0))
            value = bias if rows is None else bias[rows.to(bias.device)]
            layer.bias = nn.Parameter(value.clone(), requires_grad=layer.weight.requires_grad)


def _check_shapes(result: nn.Module, facts: Facts, widths: Mapping[str, int]) -> None:
    tensors = {**dict(result.named_parameters(remove_duplicate=False)), **dict(result.named_buffers())}
    for name, dims in facts.parameters.items():
        if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in facts.parameters:
            continue
        foretold = tuple(dim.evaluate(widths) for dim in dims)
        if tuple(tensors[name].shape) != foretold:
            raise SparsifyError(
                f"narrow: {name} came out with shape {tuple(tensors[name].shape)} where {foretold} was "
                "foretold; this is a bug, please report it with the model"
            )


def _match_modules(result: nn.Module, facts: Facts, widths: Mapping[str, int]) -> None:
    groups = {layer.fqn: layer.groups.evaluate(widths) for layer in facts.layers}
    for name, module in result.named_modules():
        match_parameters(module)
        if isinstance(module, _ConvNd) and name in groups:
            module.groups = groups[name]
            if not module.transposed:
                module.in_channels = module.weight.shape[1] * module.groups


def _rewrite_literals(result: GraphModule, facts: Facts, widths: Mapping[str, int]) -> None:
    nodes = {node.name: node for node in result.graph.nodes}
    for literal in facts.literals:
        node, value = nodes[literal.node], literal.value.evaluate(widths)
        head, rest = literal.path[0], literal.path[1:]
        if isinstance(head, str):
            node.kwargs = {**node.kwargs, head: with_literal(node.kwargs[head], rest, value)}
        else:
            node.args = with_literal(tuple(node.args), literal.path, value)
