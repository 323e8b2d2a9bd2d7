"""Rules of modules that own parameters, of normalization, pooling and resampling."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.fx import Node

from sparsify.graph.dimensions import Call, Dimensions, Dims, Unsolved, Value
from sparsify.graph.modules import ScaledDotProductAttention
from sparsify.graph.poly import Poly
from sparsify.graph.rules_elementwise import Rule
from sparsify.graph.rules_products import attend, convolve

ModuleRule = Callable[[Node, nn.Module, Dimensions], Value]


def _input(node: Node, dimensions: Dimensions) -> Dims:
    return dimensions.tensor(node.args[0])


def linear_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """nn.Linear."""
    x, weight = _input(node, dimensions), dimensions.parameter(module.weight)  # type: ignore[arg-type]
    dimensions.unify(x[-1], weight[1], node)
    _vector(module.bias, weight[0], node, dimensions)
    return (*x[:-1], weight[0])


def conv_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """nn.Conv1d, nn.Conv2d, nn.Conv3d and their transposed forms."""
    assert isinstance(module, nn.modules.conv._ConvNd)
    x, weight = _input(node, dimensions), dimensions.parameter(module.weight)
    shape = convolve(node, x, weight, module.groups, dimensions, transposed=module.transposed)
    _vector(module.bias, shape[1 - len(weight)], node, dimensions)
    return shape


def embedding_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """nn.Embedding: the number of rows stays."""
    table = dimensions.parameter(module.weight)  # type: ignore[arg-type]
    dimensions.pin_axis(table, 0, "number of rows of an embedding")
    return (*_input(node, dimensions), table[1])


def embedding_bag_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """nn.EmbeddingBag: the number of rows stays, and there are as many bags as recorded."""
    table = dimensions.parameter(module.weight)  # type: ignore[arg-type]
    dimensions.pin_axis(table, 0, "number of rows of an embedding")
    return (dimensions.present(node)[0], table[1])


def prelu_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """nn.PReLU: one slope, or one for each channel."""
    x, slopes = _input(node, dimensions), dimensions.parameter(module.weight)  # type: ignore[arg-type]
    if slopes[0].constant != 1:
        dimensions.unify(x[1] if len(x) > 1 else x[0], slopes[0], node)
    return x


def batch_norm_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """Batch and instance normalization over dimension 1; statistics follow it."""
    x = _input(node, dimensions)
    for name in ("weight", "bias", "running_mean", "running_var"):
        _vector(getattr(module, name, None), x[1], node, dimensions)
    return x


def group_norm_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """nn.GroupNorm: the number of groups stays."""
    x = _input(node, dimensions)
    _groups(x[1], int(module.num_groups), dimensions)  # type: ignore[arg-type]
    for tensor in (module.weight, module.bias):
        _vector(tensor, x[1], node, dimensions)
    return x


def layer_norm_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """nn.LayerNorm and nn.RMSNorm over the last dimensions."""
    x = _input(node, dimensions)
    for tensor in (module.weight, getattr(module, "bias", None)):
        if tensor is None:
            continue
        weight = dimensions.parameter(tensor)  # type: ignore[arg-type]
        dimensions.unify_shape(x[len(x) - len(weight) :], weight, node)
    if module.weight is None:
        shape = x[len(x) - len(module.normalized_shape) :]
        dimensions.pin(shape, f"{dimensions.where(node)} normalizes it without a weight")
    return x


def attention_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """Attention with dropout."""
    arguments = dict(zip(("query", "key", "value", "attn_mask"), node.args, strict=False)) | dict(node.kwargs)
    shapes = [dimensions.tensor(arguments[name]) for name in ("query", "key", "value")]
    mask = arguments.get("attn_mask")
    return attend(node, shapes, mask, bool(module.enable_gqa), dimensions)  # type: ignore[arg-type]


def same_module(node: Node, module: nn.Module, dimensions: Dimensions) -> Value:
    """Activations and dropout."""
    return _input(node, dimensions)


def _vector(tensor: object, size: Poly, node: Node, dimensions: Dimensions) -> None:
    if tensor is not None:
        dimensions.unify(size, dimensions.parameter(tensor)[0], node)  # type: ignore[arg-type]


def _groups(channels: Poly, groups: int, dimensions: Dimensions) -> None:
    if not dimensions.is_fixed(channels):
        dimensions.part(channels, groups)


MODULE_RULES: dict[type[nn.Module], ModuleRule] = {
    nn.Linear: linear_module,
    nn.modules.conv._ConvNd: conv_module,
    nn.Embedding: embedding_module,
    nn.EmbeddingBag: embedding_bag_module,
    nn.PReLU: prelu_module,
    nn.modules.batchnorm._NormBase: batch_norm_module,
    nn.GroupNorm: group_norm_module,
    nn.LayerNorm: layer_norm_module,
    nn.RMSNorm: layer_norm_module,
    ScaledDotProductAttention: attention_module,
    **dict.fromkeys(
        (nn.modules.dropout._DropoutNd, nn.Identity, nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh),
        same_module,
    ),
}


def layer_norm(call: Call, dimensions: Dimensions) -> Value:
    """Normalization over the last dimensions, whose sizes are stated."""
    x = dimensions.tensor(call["input"])
    stated = dimensions.sizes(call, "normalized_shape")
    inner = x[len(x) - len(stated) :]
    for size, target in zip(inner, stated, strict=True):
        dimensions.unify(size, target or size, call.node)
    for name in ("weight", "bias"):
        if call.get(name) is not None:
            dimensions.unify_shape(inner, dimensions.tensor(call[name]), call.node)
    returns = len(call.node.target._schema.returns)  # type: ignore[union-attr]
    statistics = (*x[: len(x) - len(stated)], *(Poly(1) for _ in stated))
    return x if returns == 1 else [x] + [statistics] * (returns - 1)


def batch_norm(call: Call, dimensions: Dimensions) -> Value:
    """Normalization over dimension 1."""
    x = dimensions.tensor(call["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if call.get(name) is not None:
            dimensions.unify(x[1], dimensions.tensor(call[name])[0], call.node)
    returns = len(call.node.target._schema.returns)  # type: ignore[union-attr]
    if returns == 1:
        return x
    recorded = dimensions.meta(call.node.meta["val"])
    if not isinstance(recorded, list):
        raise Unsolved("results were not recorded")
    return [x] + [(x[1],) if len(shape) == 1 and shape[0].constant else shape for shape in recorded[1:]]


def group_norm(call: Call, dimensions: Dimensions) -> Value:
    """Normalization over groups of channels; their number stays."""
    x = dimensions.tensor(call["input"])
    _groups(x[1], int(call["num_groups"]), dimensions)
    for name in ("weight", "bias"):
        if call.get(name) is not None:
            dimensions.unify(x[1], dimensions.tensor(call[name])[0], call.node)
    return x


def spatial(call: Call, dimensions: Dimensions) -> Value:
    """Pooling and resampling: batch and channels stay, the resolution is as recorded."""
    x = dimensions.tensor(call.node.args[0])
    recorded = dimensions.meta(call.node.meta["val"])
    shapes: list[Dims] = recorded if isinstance(recorded, list) else [recorded]  # type: ignore[list-item]
    axes = _SPATIAL_AXES[next(digit for digit in reversed(str(call.node.target)) if digit in _SPATIAL_AXES)]
    dimensions.pin(x[len(x) - axes :], "extent in space, not a width")
    results = [(*x[: len(x) - axes], *shape[len(x) - axes :]) for shape in shapes]
    return results if isinstance(recorded, list) else results[0]


_SPATIAL_AXES = {"1": 1, "2": 2, "3": 3}


def resample(call: Call, dimensions: Dimensions) -> Value:
    """Interpolation over everything after the channels."""
    x, recorded = dimensions.tensor(call.node.args[0]), dimensions.present(call.node)
    dimensions.pin(x[2:], "extent in space, not a width")
    return (*x[:2], *recorded[2:])


RULES: dict[str, Rule] = {
    "layer_norm": layer_norm,
    "native_layer_norm": layer_norm,
    "rms_norm": layer_norm,
    "_fused_rms_norm": layer_norm,
    **dict.fromkeys(
        (
            "batch_norm",
            "instance_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_functional",
            "_native_batch_norm_legit_no_training",
            "native_batch_norm",
        ),
        batch_norm,
    ),
    "group_norm": group_norm,
    **dict.fromkeys(
        [
            f"{kind}_pool{axes}d"
            for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
            for axes in (1, 2, 3)
        ]
        + [f"max_pool{axes}d_with_indices" for axes in (1, 2, 3)]
        + [
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
            "reflection_pad1d",
            "reflection_pad2d",
            "reflection_pad3d",
            "replication_pad1d",
            "replication_pad2d",
            "replication_pad3d",
        ],
        spatial,
    ),
    **dict.fromkeys(
        [
            "upsample_nearest1d",
            "upsample_nearest2d",
            "upsample_nearest3d",
            "upsample_bilinear2d",
            "upsample_bicubic2d",
            "upsample_trilinear3d",
            "upsample_linear1d",
            "_upsample_nearest_exact2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
            "grid_sampler",
            "grid_sampler_2d",
        ],
        resample,
    ),
}
