"""What each operator says about channels: which are the same, and which must stay.

The table is a list of what is known to be safe. Any other operator blocks the channels that it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from sparsify.graph.channel_layers import (
    batch_norm,
    convolution_module,
    embedding,
    functional_layer,
    functional_norm,
    group_norm,
    index,
    layer_norm,
    linear,
    meet,
    prelu_module,
    share,
    table,
)
from sparsify.graph.channel_products import attention, einsum, matmul
from sparsify.graph.channels import Channels, Labels, where
from sparsify.graph.dimensions import CONVOLUTIONS, Call, axis_of, operator_name
from sparsify.graph.extents import Extents
from sparsify.graph.facts import Facts
from sparsify.graph.modules import ScaledDotProductAttention
from sparsify.graph.movement import moves, tensor_inputs
from sparsify.graph.roles import data_nodes

Rule = Callable[[Node, Channels], Sequence[Labels]]

POINTWISE = frozenset(
    [
        "hardswish",
        "hardsigmoid",
        "log_sigmoid",
        "logsigmoid",
        "to",
        "type_as",
        "clone",
        "contiguous",
        "detach",
        "alias",
        "float",
        "half",
        "double",
        "_to_copy",
        "masked_fill",
        "where",
        "mish",
        "square",
        "rsub",
        "true_divide",
        "dropout",
        "alpha_dropout",
        "feature_dropout",
        "lift_fresh_copy",
        "positive",
    ]
)
_SPATIAL = frozenset(
    [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)]
    + [f"max_pool{n}d_with_indices" for n in (1, 2, 3)]
    + ["_adaptive_avg_pool2d", "_adaptive_avg_pool3d"]
    + [f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)]
    + ["upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"]
    + ["upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"]
)
_REDUCTIONS = frozenset(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "max",
        "min",
        "var",
        "std",
        "linalg_vector_norm",
        "norm",
        "logsumexp",
        "prod",
    ]
)
_ALONG = frozenset(
    ["softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax", "softmin", "cumsum", "cumprod"]
)
_EQUAL_PARTS = frozenset(("chunk", "split", "channel_shuffle"))
_FACTORIES = frozenset(
    [
        "zeros",
        "ones",
        "full",
        "empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
    ]
)


def follow(module: GraphModule, facts: Facts, extents: Extents) -> Channels:
    """Follows the channels of a canonical graph from its parameters to its outputs."""
    channels = Channels(module, facts, extents)
    data = data_nodes(module.graph)
    for node in module.graph.nodes:
        if node.op == "output":
            for source in node.all_input_nodes:
                channels.block_all(channels.of(source), "it is an output of the model")
        else:
            channels.store(node, _visit(node, channels, data))
    return channels


def _visit(node: Node, channels: Channels, data: frozenset[Node]) -> Sequence[Labels]:
    name = operator_name(node)
    if node.op == "placeholder":
        return [{}]
    if node.op == "get_attr":
        return [channels.tensor(str(node.target))]
    if node.op == "call_module":
        module = channels.module.get_submodule(str(node.target))
        kinds = (kind for kind in type(module).__mro__ if kind in _MODULES)
        kind = next(kinds, None)
        return _MODULES[kind](node, channels) if kind is not None else channels.unknown(node)
    if name == "getitem":
        return [channels.of(node.args[0], int(node.args[1]))]  # type: ignore[arg-type]
    if moves(node):
        if name in _EQUAL_PARTS:
            _share_parts(node, channels)
        return channels.moved(node)
    if name in _LAYERS and sum(source in data for source in node.all_input_nodes) > 1:
        return channels.unknown(node)
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](node, channels)
    if is_pointwise(node):
        return [channels.broadcast(node, tensor_inputs(node, channels.extents))]
    return channels.unknown(node)


def _share_parts(node: Node, channels: Channels) -> None:
    """Parts of one size can only lose a place each: the same place of every part is one channel."""
    call = Call.of(node)
    source: Any = node.args[0]
    axis = axis_of(call.get("dim", 1), len(channels.extents.shape(source)))
    atoms = channels.of(source).get(axis)
    parts = call.get("chunks", call.get("groups"))
    if atoms is None or isinstance(call.get("split_size"), (list, tuple)):
        return
    size = call.get("split_size") if parts is None else -(-atoms.numel() // parts)
    if not isinstance(size, int) or atoms.numel() % size:
        channels.block(atoms, f"{where(node)} cuts it into parts of different sizes")
        return
    share(atoms.view(-1, size), channels)


def is_pointwise(node: Node) -> bool:
    """Whether a node computes each element from the elements in its place."""
    tagged = torch.Tag.pointwise in getattr(node.target, "tags", ())
    return node.op == "call_function" and (tagged or operator_name(node) in POINTWISE)


def _same(node: Node, channels: Channels) -> Sequence[Labels]:
    return [channels.of(node.args[0])]


def _spatial(node: Node, channels: Channels) -> Sequence[Labels]:
    return [channels.of(node.args[0]) for _ in channels.extents.shapes(node)]


def reduced_axes(node: Node, rank: int) -> list[int]:
    """Dimensions that a reduction runs over."""
    given = Call.of(node).get("dim")
    if given is None or given == []:
        return list(range(rank))
    return [axis_of(axis, rank) for axis in (given if isinstance(given, (list, tuple)) else [given])]


def _reduction(node: Node, channels: Channels) -> Sequence[Labels]:
    """Keeps channels along the other dimensions; a sum over channels is left to whoever removes zeros."""
    call = Call.of(node)
    if "other" in call.values:
        return [channels.broadcast(node, tensor_inputs(node, channels.extents))]
    source: Any = node.args[0]
    x, rank = channels.of(source), len(channels.extents.shape(source))
    gone = reduced_axes(node, rank)
    if operator_name(node) != "sum":
        channels.block_all(x, f"{where(node)} reduces over it", gone)
    if call.get("keepdim"):
        kept = {axis: atoms for axis, atoms in x.items() if axis not in gone}
    else:
        kept = {axis - sum(g < axis for g in gone): atoms for axis, atoms in x.items() if axis not in gone}
    return [kept for _ in channels.extents.shapes(node)]


def _padded(node: Node, channels: Channels) -> Sequence[Labels]:
    """Copies of entries around the last dimensions."""
    x, rank = channels.of(node.args[0]), len(channels.extents.shape(node))
    around = range(rank - len(Call.of(node)["pad"]) // 2, rank)
    channels.block_all(x, f"{where(node)} repeats places in it", around)
    return [x]


def _along(node: Node, channels: Channels) -> Sequence[Labels]:
    source: Any = node.args[0]
    axis = axis_of(Call.of(node)["dim"], len(channels.extents.shape(source)))
    channels.block_all(channels.of(source), f"{where(node)} runs over it", (axis,))
    return [channels.of(source)]


def _glu(node: Node, channels: Channels) -> Sequence[Labels]:
    source: Any = node.args[0]
    x = dict(channels.of(source))
    axis = axis_of(Call.of(node)["dim"], len(channels.extents.shape(source)))
    if axis in x:
        half, gate = x[axis].chunk(2)
        channels.same(half, gate, node)
        x[axis] = half
    return [x]


def _prelu(node: Node, channels: Channels) -> Sequence[Labels]:
    x, slopes = channels.of(node.args[0]), channels.of(node.args[1])
    meet(x.get(1), slopes.get(0), node, channels)
    return [x]


def _new(node: Node, channels: Channels) -> Sequence[Labels]:
    source = node.args[0] if node.args else None
    like = isinstance(source, Node) and operator_name(node).endswith("_like")
    return [channels.of(source)] if like else [{}]


_LAYERS = ("linear", *CONVOLUTIONS)
_FUNCTIONS: Mapping[str, Rule] = {
    **dict.fromkeys(_LAYERS, functional_layer),
    **dict.fromkeys(("matmul", "bmm", "baddbmm"), matmul),
    "scaled_dot_product_attention": attention,
    "einsum": einsum,
    **dict.fromkeys(_SPATIAL, _spatial),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_FACTORIES, _new),
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    "glu": _glu,
    "pad": _padded,
    **dict.fromkeys(("batch_norm", "instance_norm"), functional_norm),
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm"), functional_norm),
    "embedding": table,
    "index": index,
    "sym_size": lambda node, channels: [{}],
    "sym_numel": lambda node, channels: [{}],
}
_MODULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.modules.conv._ConvNd: convolution_module,
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding,
    nn.modules.batchnorm._NormBase: batch_norm,
    nn.PReLU: prelu_module,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: layer_norm,
    nn.GroupNorm: group_norm,
    ScaledDotProductAttention: attention,
    nn.modules.dropout._DropoutNd: _same,
}
