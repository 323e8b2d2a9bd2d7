"""What layers and norms say about channels: which dimensions of their parameters are which of their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from sparsify.graph.channels import Channels, Labels, where
from sparsify.graph.dimensions import Call, operator_name


def _parameter(node: Node, name: str, channels: Channels) -> Labels:
    module = channels.module.get_submodule(str(node.target))
    present = isinstance(getattr(module, name, None), Tensor)
    return channels.tensor(f"{node.target}.{name}") if present else {}


def linear(node: Node, channels: Channels) -> Sequence[Labels]:
    """nn.Linear."""
    return [
        _product(node, channels, _parameter(node, "weight", channels), _parameter(node, "bias", channels))
    ]


def _product(node: Node, channels: Channels, weight: Labels, bias: Labels) -> Labels:
    """x·Wᵀ + b for W [out, in]."""
    x = channels.of(node.args[0])
    last = len(channels.extents.shape(node.args[0])) - 1  # type: ignore[arg-type]
    meet(x.get(last), weight.get(1), node, channels)
    meet(weight.get(0), bias.get(0), node, channels)
    kept = {axis: atoms for axis, atoms in x.items() if axis != last}
    return kept | ({last: weight[0]} if 0 in weight else {})


def meet(one: Tensor | None, other: Tensor | None, node: Node, channels: Channels) -> None:
    """States that two dimensions are the same where either follows a width."""
    if one is not None and other is not None:
        channels.same(one, other, node)


def convolution_module(node: Node, channels: Channels) -> Sequence[Labels]:
    """nn.Conv1d, nn.Conv2d, nn.Conv3d."""
    module = channels.module.get_submodule(str(node.target))
    weight, bias = _parameter(node, "weight", channels), _parameter(node, "bias", channels)
    shape = tuple(module.weight.shape)  # type: ignore[arg-type]
    if getattr(module, "transposed", False):
        return (
            [_convolve_back(node, channels, weight, bias)] if module.groups == 1 else channels.unknown(node)
        )
    return [_convolve(node, channels, shape, weight, bias, int(module.groups))]  # type: ignore[arg-type]


def _convolve(
    node: Node, channels: Channels, shape: tuple[int, ...], weight: Labels, bias: Labels, groups: int
) -> Labels:
    """Grouped ones: place j of every group goes together; depthwise ones: inputs are outputs."""
    axis = len(channels.extents.shape(node.args[0])) - len(shape) + 1  # type: ignore[arg-type]
    x, out = channels.of(node.args[0]).get(axis), weight.get(0)
    if groups == 1:
        meet(x, weight.get(1), node, channels)
    elif 1 not in weight and shape[1] == 1 and x is not None and out is not None:
        channels.same(x.repeat_interleave(shape[0] // groups), out, node)
    else:
        for atoms in (x, out):
            if atoms is not None:
                share(atoms.view(groups, -1), channels)
        meet(None if x is None else x.view(groups, -1)[0], weight.get(1), node, channels)
    meet(out, bias.get(0), node, channels)
    return {axis: out} if out is not None else {}


def share(rows: Tensor, channels: Channels) -> None:
    """States that the same place of every row is one channel."""
    for column in rows.t().tolist():
        channels.merge(column)


def _convolve_back(node: Node, channels: Channels, weight: Labels, bias: Labels) -> Labels:
    """A transposed convolution: its weight is [in, out, ...]."""
    rank = channels.module.get_parameter(f"{node.target}.weight").ndim
    axis = len(channels.extents.shape(node)) - rank + 1
    meet(channels.of(node.args[0]).get(axis), weight.get(0), node, channels)
    meet(weight.get(1), bias.get(0), node, channels)
    return {axis: weight[1]} if 1 in weight else {}


def prelu_module(node: Node, channels: Channels) -> Sequence[Labels]:
    """A slope for each channel, or one for all."""
    x = channels.of(node.args[0])
    meet(x.get(1), _parameter(node, "weight", channels).get(0), node, channels)
    return [x]


def functional_layer(node: Node, channels: Channels) -> Sequence[Labels]:
    """A linear layer or convolution whose weight is an operand."""
    call = Call.of(node)
    weight, bias = channels.of(call["weight"]), channels.of(call.get("bias"))
    if operator_name(node) == "linear":
        return [_product(node, channels, weight, bias)]
    shape, groups = channels.extents.shape(call["weight"]), call["groups"]
    if not isinstance(groups, int) or not _is_forward(call):
        return channels.unknown(node)
    return [_convolve(node, channels, shape, weight, bias, groups)]


def _is_forward(call: Call) -> bool:
    return not (bool(call.get("transposed")) or "transpose" in str(call.node.target))


def embedding(node: Node, channels: Channels) -> Sequence[Labels]:
    """nn.Embedding."""
    table = _parameter(node, "weight", channels)
    return [{len(channels.extents.shape(node)) - 1: table[1]} if 1 in table else {}]


def table(node: Node, channels: Channels) -> Sequence[Labels]:
    """Rows of a table that is an operand."""
    table = channels.of(node.args[0])
    channels.block_all(table, f"{where(node)} addresses places in it", (0,))
    return [{len(channels.extents.shape(node)) - 1: table[1]} if 1 in table else {}]


def index(node: Node, channels: Channels) -> Sequence[Labels]:
    """Places of one dimension, listed in a tensor."""
    source: Any = node.args[0]
    given = list(node.args[1])  # type: ignore[arg-type]
    places = [axis for axis, item in enumerate(given) if item is not None]
    if len(places) != 1:
        return channels.unknown(node)
    (at,) = places
    x, more = channels.of(source), len(channels.extents.shape(given[at])) - 1
    channels.block_all(x, f"{where(node)} addresses places in it", (at,))
    return [{axis + (more if axis > at else 0): atoms for axis, atoms in x.items() if axis != at}]


def batch_norm(node: Node, channels: Channels) -> Sequence[Labels]:
    """Normalization over dimension 1 with statistics that are there already."""
    x = channels.of(node.args[0])
    for name in ("weight", "bias", "running_mean", "running_var"):
        meet(x.get(1), _parameter(node, name, channels).get(0), node, channels)
    return [x]


def layer_norm(node: Node, channels: Channels) -> Sequence[Labels]:
    """Normalization over the last dimensions: they must stay."""
    x, rank = channels.of(node.args[0]), len(channels.extents.shape(node))
    module = channels.module.get_submodule(str(node.target))
    count = len(module.normalized_shape)  # type: ignore[arg-type]
    for name in ("weight", "bias"):
        for axis, atoms in _parameter(node, name, channels).items():
            meet(x.get(rank - count + axis), atoms, node, channels)
            channels.block(atoms, f"{where(node)} normalizes over it")
    channels.block_all(x, f"{where(node)} normalizes over it", range(rank - count, rank))
    return [x]


def group_norm(node: Node, channels: Channels) -> Sequence[Labels]:
    """Normalization over groups of channels: they must stay."""
    x = channels.of(node.args[0])
    for name in ("weight", "bias"):
        meet(x.get(1), _parameter(node, name, channels).get(0), node, channels)
    channels.block_all(x, f"{where(node)} normalizes over it", (1,))
    return [x]


def functional_norm(node: Node, channels: Channels) -> Sequence[Labels]:
    """A normalization without a module: over dimension 1, over groups of it, or over the last dimensions."""
    call, name = Call.of(node), operator_name(node)
    x, rank = channels.of(call["input"]), len(channels.extents.shape(node))
    first = 1 if "normalized_shape" not in call.values else rank - len(call["normalized_shape"])
    for other in ("weight", "bias", "running_mean", "running_var"):
        for axis, atoms in channels.of(call.get(other)).items():
            meet(x.get(first + axis), atoms, node, channels)
    if name not in ("batch_norm", "instance_norm"):
        over = (1,) if name == "group_norm" else range(first, rank)
        channels.block_all(x, f"{where(node)} normalizes over it", over)
    return [x]
