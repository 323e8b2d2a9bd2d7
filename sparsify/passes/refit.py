"""Keeps the size attributes of torch modules in step with the shapes of their parameters."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def refit(module: nn.Module, *, groups: int | None = None) -> None:
    """Sets `in_features`, `num_features`, … of a module from its parameters' shapes.

    Args:
        module: Module whose parameters have their new shapes.
        groups: New number of groups of a convolution, where it changes.
    """
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _ConvNd) and not module.transposed:
        module.groups = module.groups if groups is None else groups
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = module.weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, _NormBase):
        sized = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = module.num_features if sized is None else sized.shape[0]
