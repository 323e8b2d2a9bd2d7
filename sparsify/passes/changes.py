"""What a pass did to a graph: nodes that are new, or that compute something else than before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

Snapshot = Mapping[str, tuple[Any, ...]]
"""What every node was: operation, target, arguments, and the module that it calls in outline."""


def snapshot(graph: GraphModule) -> Snapshot:
    """Takes down every node of a graph by name."""
    modules = dict(graph.named_modules(remove_duplicate=False))
    return {node.name: _taken(node, modules) for node in graph.graph.nodes}


def changed_nodes(before: Snapshot, graph: GraphModule) -> list[Node]:
    """Nodes that are not in a snapshot, or are another there.

    Args:
        before: A snapshot of the graph, or of one that it was copied from.
        graph: The graph now.
    """
    modules = dict(graph.named_modules(remove_duplicate=False))
    return [
        node
        for node in graph.graph.nodes
        if node.name not in before or not _same(before[node.name], _taken(node, modules))
    ]


def _taken(node: Node, modules: Mapping[str, nn.Module]) -> tuple[Any, ...]:
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    return (node.op, node.target, _outline(module), node.args, node.kwargs)


def _outline(module: nn.Module | None) -> Any:
    if module is None:
        return None
    shapes = tuple(None if p is None else tuple(p.shape) for p in module._parameters.values())
    return (type(module), shapes, module.extra_repr())


def _same(one: tuple[Any, ...], two: tuple[Any, ...]) -> bool:
    if one[:3] != two[:3]:
        return False
    if one[3] is two[3] and one[4] is two[4]:
        return True
    return bool(_named(one[3:]) == _named(two[3:]))


def _named(arguments: Any) -> Any:
    return map_arg(arguments, lambda node: node.name)
