"""What reads a layer's output, alone, up to the first nonlinearity: a norm, an activation, both or neither.

An activation may be one operator or several (an activation function spelled out): any pointwise nodes that
compute one value from the layer's output and numbers, as long as nothing else reads what lies between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _NormBase

from sparsify.graph.dimensions import operator_name

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Modules that normalise one tensor; `_NormBase` is batch and instance normalisation."""
_NAMES = ((nn.modules.batchnorm._BatchNorm, "batch_norm"), (_NormBase, "instance_norm"))
_NAMES_MORE = ((nn.LayerNorm, "layer_norm"), (nn.GroupNorm, "group_norm"), (nn.RMSNorm, "rms_norm"))
_POINTWISE_TOO = frozenset({"_to_copy", "clone", "alias", "hardswish", "log_sigmoid"})


@dataclass(frozen=True)
class Following:
    """What reads a layer's output.

    Attributes:
        norm: Path of the normalisation that alone reads the output, or None.
        activation: Names of the pointwise nodes of the nonlinearity, in order, the last of which is its
            result; empty where there is none.
        label: For people: `batch_norm+relu`, `gelu`, `layer_norm`, `none`, …; `activation` where it is
            spelled out over several nodes.
    """

    norm: str | None = None
    activation: tuple[str, ...] = ()
    label: str = "none"


NOTHING = Following()


def following(module: GraphModule, node: Node) -> Following:
    """Finds what follows one call of a layer.

    Args:
        module: Canonical graph module.
        node: The layer's node.
    """
    norm = _norm(module, node)
    behind = node if norm is None else norm
    nodes = _activation(module, behind)
    labels = [] if norm is None else [_norm_label(module.get_submodule(str(norm.target)))]
    if nodes:
        labels.append(operator_name(nodes[0]).lower() if len(nodes) == 1 else "activation")
    path = None if norm is None else str(norm.target)
    return Following(path, tuple(one.name for one in nodes), "+".join(labels) or "none")


def common(found: Sequence[Following]) -> Following:
    """What follows every call of a layer that is called more than once; nothing where the calls differ."""
    first = found[0]
    same = all((one.norm, one.label) == (first.norm, first.label) for one in found)
    return first if same else NOTHING


def evaluate(module: GraphModule, names: Sequence[str], x: Tensor) -> Tensor:
    """Computes the nodes `names` of an activation on values of the layer's output (any shape)."""
    nodes = {node.name: node for node in module.graph.nodes}
    return _run(module, [nodes[name] for name in names], x)


def _norm(module: GraphModule, node: Node) -> Node | None:
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module" or users[0].args != (node,) or users[0].kwargs:
        return None
    return users[0] if isinstance(module.get_submodule(str(users[0].target)), NORMS) else None


def _norm_label(norm: nn.Module) -> str:
    return next(name for kind, name in (*_NAMES, *_NAMES_MORE) if isinstance(norm, kind))


def _activation(module: GraphModule, start: Node) -> list[Node]:
    """Pointwise nodes from `start` to the first one that alone carries on and is no affine function of it."""
    region: list[Node] = []
    inside = {start}
    open_users = {start: set(start.users)}
    node = start.next
    while open_users and node.op != "root":
        if any(node in users for users in open_users.values()):
            if not _pointwise(module, node) or not inside.issuperset(node.all_input_nodes):
                return []
            region.append(node)
            inside.add(node)
            open_users = {one: rest for one, users in open_users.items() if (rest := users - {node})}
            if not open_users and _nonlinear(module, region):
                return region
            open_users[node] = set(node.users)
        node = node.next
    return []


def _pointwise(module: GraphModule, node: Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.PReLU)
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    return torch.Tag.pointwise in node.target.tags or operator_name(node) in _POINTWISE_TOO


def _nonlinear(module: GraphModule, region: Sequence[Node]) -> bool:
    """Whether the nodes compute something else than a·x + b; tried on points of both signs."""
    if any(node.op == "call_module" for node in region):
        return True
    x = torch.linspace(-8.0, 8.0, 33, dtype=torch.float64)
    y = _run(module, region, x)
    if not y.is_floating_point():
        return False
    line = y[16] + (x / 8.0) * (y[32] - y[0]) / 2
    return bool((y - line).abs().max() > 1e-6 * y.abs().max().clamp(min=1e-6))


@torch.no_grad()
def _run(module: GraphModule, region: Sequence[Node], x: Tensor) -> Tensor:
    values: dict[Node, Tensor] = {}

    def value(source: Node) -> Any:
        return values.get(source, x)

    for node in region:
        args: Any = map_arg(node.args, value)
        kwargs: Any = map_arg(node.kwargs, value)
        if node.op == "call_module":
            own = module.get_submodule(str(node.target))
            slope = _slope(own, x)
            values[node] = torch.where(args[0] > 0, args[0], slope * args[0])
        elif operator_name(node) == "_to_copy":
            values[node] = args[0]
        else:
            values[node] = cast(OpOverload, node.target)(*args, **kwargs)
    return values[region[-1]]


def _slope(module: nn.Module, x: Tensor) -> Tensor:
    """Mean slope of a PReLU; on the meta device, which holds none, torch's initial one."""
    if not isinstance(module, nn.PReLU):
        return x.new_tensor(0.0)
    weight = module.weight.detach()
    return x.new_tensor(0.25) if weight.is_meta else weight.to(x).mean()
