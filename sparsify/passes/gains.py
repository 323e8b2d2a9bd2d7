"""Gains of norms that reduce over channels: as a module, or spelled out over several operators."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule, Node

REDUCING_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_MEANS = ("mean", "var", "var_mean", "std", "linalg_vector_norm")
_PASSED = ("to", "_to_copy", "type_as", "getitem", "rsqrt", "sqrt")
_STEPS = 16


def norm_gains(graph: nn.Module) -> frozenset[str]:
    """Paths of the gains of all norms that take a mean over the last dimension or over channels."""
    found = {
        f"{name}.weight"
        for name, module in graph.named_modules()
        if isinstance(module, REDUCING_NORMS) and module.weight is not None
    }
    if isinstance(graph, GraphModule):
        for node in graph.graph.nodes:
            if node.op == "get_attr" and any(_scales_normed(user, node) for user in node.users):
                found.add(str(node.target))
    return frozenset(found)


def _scales_normed(node: Node, gain: Node) -> bool:
    """Whether a node is the product of a vector and something that was divided by its mean size."""
    value = gain.meta.get("val")
    if _name(node) != "mul" or not isinstance(value, torch.Tensor) or value.dim() != 1:
        return False
    other = [source for source in node.all_input_nodes if source is not gain]
    return len(other) == 1 and _comes_from_mean(other[0])


def _comes_from_mean(node: Node) -> bool:
    front, steps = [node], 0
    seen: set[Node] = set()
    while front and steps < _STEPS:
        reached = front.pop(0)
        if reached in seen:
            continue
        seen.add(reached)
        steps += 1
        if _name(reached) in _MEANS:
            return _over_last(reached)
        if _pointwise(reached):
            front += reached.all_input_nodes
    return False


def _over_last(node: Node) -> bool:
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    source = node.all_input_nodes[0].meta.get("val")
    rank = source.dim() if isinstance(source, torch.Tensor) else 0
    wanted = axes if isinstance(axes, (list, tuple)) else [axes]
    return any(axis in (-1, rank - 1) for axis in wanted)


def _pointwise(node: Node) -> bool:
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags:
        return True
    return _name(node) in _PASSED


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", "")
    return str(schema.name.partition("::")[2]).rstrip("_")
