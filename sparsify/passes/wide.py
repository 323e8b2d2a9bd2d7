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

from sparsify.graph.facts import Facts
from sparsify.graph.verify import propagate
from sparsify.masks.module import SparseGraphModule
from sparsify.passes.contract import Pass, PassResult, mark
from sparsify.passes.refit import refit
from sparsify.planning import Plan

Shapes = Mapping[str, tuple[int, ...]]


class Wide(Pass):
    """Rebuilds the model at the planned widths; counts changed tensors and literals."""

    name = "wide"

    def run(self, graph: torch.fx.GraphModule, plan: Plan) -> PassResult:
        """Allocates, copies the structure, and rewrites the sizes baked into the graph."""
        shapes = planned_shapes(self.context.facts, plan)
        replaced = _allocate(graph, shapes)
        result = _rebuilt(graph, replaced)
        changed = {name for name, old in _tensors(graph).items() if tuple(old.shape) != shapes[name]}
        self._refit(result, plan)
        modified = len(changed) + self._rewrite_literals(result, plan)
        owners = {name.rpartition(".")[0] for name in changed}
        for node in result.graph.nodes:
            if (node.op == "call_module" and node.target in owners) or node.target in changed:
                mark(node, self.name, node.name)
        if modified:
            result.recompile()
            propagate(result, (self.context.traced.args, self.context.traced.kwargs))
        return PassResult(result, modified)

    def ensures(self, graph: torch.fx.GraphModule, plan: Plan) -> None:
        """Every tensor has its planned shape and none shares memory with the given model."""
        shapes = planned_shapes(self.context.facts, plan)
        given = {
            tensor.data_ptr() for tensor in _tensors(self.context.traced.module).values() if tensor.numel()
        }
        for name, tensor in _tensors(graph).items():
            if tuple(tensor.shape) != shapes[name]:
                raise self.failed(f"{name} has shape {tuple(tensor.shape)}, planned was {shapes[name]}")
            if tensor.numel() and tensor.data_ptr() in given:
                raise self.failed(f"{name} shares memory with the given model")

    def _refit(self, result: nn.Module, plan: Plan) -> None:
        widths = plan.widths
        groups = {layer.fqn: layer.groups.evaluate(widths) for layer in self.context.facts.layers}
        for name, module in result.named_modules():
            refit(module, groups=groups.get(name))

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


def _rebuilt(module: torch.fx.GraphModule, replaced: dict[int, Tensor]) -> SparseGraphModule:
    """Copies the structure with other tensors in it; ties stay ties, since one id has one replacement."""
    memo: dict[int, Any] = dict(replaced)
    copied = copy.deepcopy(module, memo)
    result = SparseGraphModule(copied, copied.graph)
    # The constructor copies only what the graph names; state that no node reads is kept as well.
    for name, child in copied.named_children():
        result.add_module(name, child)
    for name, parameter in copied.named_parameters(recurse=False):
        result.register_parameter(name, parameter)
    persistent = set(copied.state_dict(keep_vars=True))
    for name, buffer in copied.named_buffers(recurse=False):
        result.register_buffer(name, buffer, persistent=name in persistent)
    result.meta = {key: value for key, value in copied.meta.items() if key != "sparsify"}
    return result


def _at(node: torch.fx.Node, path: tuple[int | str, ...]) -> Any:
    found: Any = node.kwargs if isinstance(path[0], str) else node.args
    for step in path:
        found = found[step]
    return found


def _replace(node: torch.fx.Node, path: tuple[int | str, ...], value: int) -> None:
    """Sets one int inside a node's arguments, which are immutable as a whole."""
    if isinstance(path[0], str):
        node.kwargs = _with(node.kwargs, path, value)
    else:
        node.args = _with(node.args, path, value)


def _with(container: Any, path: tuple[int | str, ...], value: int) -> Any:
    if not path:
        return value
    head, *rest = path
    if isinstance(container, Mapping):
        return {**container, head: _with(container[head], tuple(rest), value)}
    items = list(container)
    items[int(head)] = _with(items[int(head)], tuple(rest), value)
    return tuple(items) if isinstance(container, tuple) else items
