"""Sparse Wide, the structural half: a new module at the planned widths.

θ ∈ R^{Din×Dout} becomes θ ∈ R^{k·Din×k·Dout}, for every width group at its own realised k (Sparse-IFT,
arXiv 2303.11525). With every group at its own size this is a copy of the structure, which is what the masked
family needs. Parameters are allocated at their new shapes and left to the next pass; nothing is shared with
the input.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparsify.graph.canonical import complete
from sparsify.graph.facts import Facts
from sparsify.graph.resize import match_parameters
from sparsify.graph.verify import propagate, with_literal
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import SUFFIX, masked_parameters
from sparsify.passes.contract import Pass, PassResult, mark
from sparsify.planning import Plan

Shapes = Mapping[str, tuple[int, ...]]


class Wide(Pass):
    """Rebuilds the model at the planned widths; counts changed tensors and literals."""

    name = "wide"

    def run(self, graph: torch.fx.GraphModule, plan: Plan) -> PassResult:
        """Allocates, copies the structure, and rewrites the sizes baked into the graph."""
        shapes = planned_shapes(self.context.facts, plan)
        replaced = _allocate(graph, shapes)
        result = rebuilt(graph, replaced)
        if self.context.init == "scratch":
            _drop_masks(result)
        changed = {name for name, old in _tensors(graph).items() if tuple(old.shape) != shapes[name]}
        self._match_modules(result, plan)
        modified = len(changed) + self._rewrite_literals(result, plan)
        owners = {name.rpartition(".")[0] for name in changed}
        for node in result.graph.nodes:
            if (node.op == "call_module" and node.target in owners) or node.target in changed:
                mark(node, self.name, node.name)
        if modified:
            result.recompile()
            propagate(result)
        return PassResult(result, modified)

    def ensures(self, graph: torch.fx.GraphModule, plan: Plan) -> None:
        """Every tensor has its planned shape and none shares memory with the given model."""
        shapes = planned_shapes(self.context.facts, plan)
        given = {
            _memory(tensor) for tensor in _tensors(self.context.traced.module).values() if tensor.numel()
        }
        for name, tensor in _tensors(graph).items():
            if tuple(tensor.shape) != shapes[name]:
                raise self.failed(f"{name} has shape {tuple(tensor.shape)}, planned was {shapes[name]}")
            if tensor.numel() and _memory(tensor) in given:
                raise self.failed(f"{name} shares memory with the given model")

    def _match_modules(self, result: nn.Module, plan: Plan) -> None:
        widths = plan.widths
        groups = {layer.fqn: layer.groups.evaluate(widths) for layer in self.context.facts.layers}
        for name, module in result.named_modules():
            match_parameters(module)
            if isinstance(module, _ConvNd) and name in groups:
                module.groups = groups[name]
                if not module.transposed:
                    module.in_channels = module.weight.shape[1] * module.groups

    def _rewrite_literals(self, result: torch.fx.GraphModule, plan: Plan) -> int:
        nodes = {node.name: node for node in result.graph.nodes}
        widths = plan.widths
        changed = 0
        for literal in self.context.facts.literals:
            node = nodes[literal.node]
            value = literal.value.evaluate(widths)
            if _at(node, literal.path) != value:
                _replace(node, literal.path, value)
                mark(node, self.name, node.name)
                changed += 1
        return changed


def planned_shapes(facts: Facts, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter and buffer at the planned widths."""
    widths = plan.widths
    return {name: tuple(dim.evaluate(widths) for dim in dims) for name, dims in facts.parameters.items()}


def _memory(tensor: Tensor) -> int:
    """Where a tensor's values lie; the object itself on the meta device, which has none."""
    return id(tensor) if tensor.is_meta else tensor.data_ptr()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _allocate(module: nn.Module, shapes: Shapes) -> dict[int, Tensor]:
    """New tensors by the id of those they stand for: parameters empty, buffers copied or default."""
    made: dict[int, Tensor] = {}
    for name, parameter in module.named_parameters():
        fresh = torch.empty(shapes[name], dtype=parameter.dtype, device=parameter.device)
        made[id(parameter)] = nn.Parameter(fresh, requires_grad=parameter.requires_grad)
    for name, buffer in module.named_buffers():
        if tuple(buffer.shape) == shapes[name]:
            made[id(buffer)] = buffer.detach().clone()
        else:
            fill = 1 if name.endswith("running_var") else 0
            made[id(buffer)] = torch.full(shapes[name], fill, dtype=buffer.dtype, device=buffer.device)
    return made


def rebuilt(module: torch.fx.GraphModule, replaced: dict[int, Tensor]) -> SparseGraphModule:
    """Copies the structure of a module with other tensors in it, by the id of those that they stand for.

    Ties stay ties, since one id has one replacement.
    """
    memo: dict[int, Any] = dict(replaced)
    root = nn.Module()
    root._modules = copy.deepcopy(module._modules, memo)
    root._parameters = copy.deepcopy(module._parameters, memo)
    root._buffers = copy.deepcopy(module._buffers, memo)
    root._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    result = SparseGraphModule(root, copy.deepcopy(module.graph))
    complete(result, root)
    result.training = module.training
    return result


def _drop_masks(module: nn.Module) -> None:
    """Forgets the masks of a pruned model, which belong to the weights that it had."""
    for entry in masked_parameters(module).values():
        del entry.owner._buffers[entry.name + SUFFIX]


def _at(node: torch.fx.Node, path: tuple[int | str, ...]) -> Any:
    found: Any = node.kwargs if isinstance(path[0], str) else node.args
    for step in path:
        found = found[step]
    return found


def _replace(node: torch.fx.Node, path: tuple[int | str, ...], value: int) -> None:
    """Sets one int inside a node's arguments, which are immutable as a whole."""
    head = path[0]
    if isinstance(head, str):
        node.kwargs = {**node.kwargs, head: with_literal(node.kwargs[head], path[1:], value)}
    else:
        node.args = with_literal(node.args, path, value)
