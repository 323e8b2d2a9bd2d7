"""New modules in the image of a layer: branches, factors, and normalisations of another width.

Parameters are allocated and hold nothing yet.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import skip_init

from sparsify.graph.canonical_clean import arguments
from sparsify.passes.parts import resized

_CONVOLUTIONS: dict[str, type[_ConvNd]] = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_BATCH_NORMS: dict[str, type[_NormBase]] = {
    "conv1d": nn.BatchNorm1d,
    "conv2d": nn.BatchNorm2d,
    "conv3d": nn.BatchNorm3d,
}


def template_of(graph: GraphModule, node: Node, kind: str) -> nn.Module:
    """The layer that a node calls, as a module; that of a functional call shares its parameters."""
    if node.op == "call_module":
        return graph.get_submodule(str(node.target))
    bound = arguments(node)
    weight, bias = (_parameter(graph, bound[name]) for name in ("weight", "bias"))
    out, inputs, *kernel = weight.shape
    made: nn.Module
    if kind == "linear":
        made = nn.Linear(inputs, out, bias is not None, device="meta")
    else:
        geometry = {name: bound[name] for name in ("stride", "padding", "dilation")}
        geometry = {
            name: value if isinstance(value, str) else tuple(value) for name, value in geometry.items()
        }
        inputs, groups = inputs * bound["groups"], bound["groups"]
        made = _CONVOLUTIONS[kind](
            inputs, out, tuple(kernel), groups=groups, bias=bias is not None, device="meta", **geometry
        )
    made._parameters["weight"], made._parameters["bias"] = weight, bias
    return made.train(graph.training)


def _parameter(graph: GraphModule, node: Any) -> Any:
    if node is None:
        return None
    owner, _, leaf = str(node.target).rpartition(".")
    return graph.get_submodule(owner)._parameters[leaf]


def branch(template: nn.Module) -> nn.Module:
    """A module like the layer itself."""
    shape = _weight(template).shape
    return _like(template, shape[1], shape[0], bias=_has_bias(template))


def inner_factor(template: nn.Module, rank: int) -> nn.Module:
    """U: the layer with `rank` outputs and no bias; it carries kernel, stride, padding and groups."""
    return _like(template, _weight(template).shape[1], rank, bias=False)


def outer_factor(template: nn.Module, rank: int, *, bias: bool) -> nn.Module:
    """V: from `rank` inputs to the layer's outputs, pointwise; with a bias only where the layer has one."""
    outputs = _weight(template).shape[0]
    inputs = rank // _groups(template)
    return _like(template, inputs, outputs, bias=bias and _has_bias(template), pointwise=True)


def merged_layer(inner: nn.Module, outputs: int, *, bias: bool) -> nn.Module:
    """A layer with the geometry and inputs of another, and `outputs` outputs."""
    return _like(inner, _weight(inner).shape[1], outputs, bias=bias)


def _like(
    template: nn.Module, inputs: int, outputs: int, *, bias: bool, pointwise: bool = False
) -> nn.Module:
    """A module of the layer's class.

    Args:
        template: The layer.
        inputs: Second dimension of the weight: inputs of one group.
        outputs: First dimension of the weight.
        bias: Whether it has a bias.
        pointwise: Whether it has kernel size 1 in place of the layer's geometry.
    """
    weight = _weight(template)
    where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    made: nn.Module
    if isinstance(template, _ConvNd):
        kernel = (1,) * len(template.kernel_size) if pointwise else template.kernel_size
        geometry = {} if pointwise else _geometry(template)
        made = _empty(
            type(template),
            inputs * template.groups,
            outputs,
            kernel,
            groups=template.groups,
            bias=bias,
            **geometry,
            **where,
        )
    else:
        made = _empty(nn.Linear, inputs, outputs, bias=bias, **where)
    for name, parameter in made.named_parameters():
        own = template._parameters.get(name)
        parameter.requires_grad_((weight if own is None else own).requires_grad)
    return made.train(template.training)


def _empty(kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """A module without values: neither time nor random numbers go into an initialisation that is replaced."""
    made: nn.Module = skip_init(kind, *args, **kwargs)  # type: ignore[no-untyped-call]
    return made


def _geometry(template: _ConvNd) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "padding_mode")
    return {name: getattr(template, name) for name in names}


def default_norm(template: nn.Module, kind: str, features: int) -> nn.Module:
    """The normalisation that is inserted by name: batch for convolutions, layer for linear layers."""
    weight = _weight(template)
    where: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    made = nn.LayerNorm(features, **where) if kind == "linear" else _BATCH_NORMS[kind](features, **where)
    return made.train(template.training)


def norm_of_rank(norm: nn.Module, rank: int, spatial: int) -> nn.Module:
    """A normalisation of the same kind over `rank` channels.

    A group norm has as many groups as divide the rank, at most its own.

    Args:
        norm: The normalisation.
        rank: The number of channels.
        spatial: Spatial dimensions behind the channels.
    """
    made = copy.deepcopy(norm)
    for stores, names in ((made._parameters, ("weight", "bias")), (made._buffers, _STATISTICS)):
        for name in names:
            old = stores.get(name)
            if old is not None:
                stores[name] = _resized(old, resized(norm, tuple(old.shape), rank, spatial), name)
    if isinstance(made, _NormBase):
        made.num_features = rank
    elif isinstance(made, nn.GroupNorm):
        made.num_channels = rank
        made.num_groups = max(n for n in range(1, made.num_groups + 1) if rank % n == 0)
    elif isinstance(made, nn.LayerNorm | nn.RMSNorm):
        made.normalized_shape = resized(norm, tuple(made.normalized_shape), rank, spatial)
    return made


_STATISTICS = ("running_mean", "running_var")


def _resized(old: Tensor, shape: tuple[int, ...], name: str) -> Any:
    fill = 1.0 if name in ("running_var", "weight") else 0.0
    new = torch.full(shape, fill, dtype=old.dtype, device=old.device)
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def slope_of_rank(module: nn.PReLU, rank: int) -> nn.PReLU:
    """A PReLU of the same kind over `rank` channels."""
    size = rank if module.num_parameters > 1 else 1
    made = nn.PReLU(size, device=module.weight.device, dtype=module.weight.dtype)
    made.weight.requires_grad_(module.weight.requires_grad)
    return made.train(module.training)


def _weight(template: nn.Module) -> Tensor:
    return template.get_parameter("weight")


def _has_bias(template: nn.Module) -> bool:
    return template._parameters.get("bias") is not None


def _groups(template: nn.Module) -> int:
    return template.groups if isinstance(template, _ConvNd) else 1
