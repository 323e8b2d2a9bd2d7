"""Brings what a module says of its sizes in line with its parameters, after these got other shapes."""

from __future__ import annotations

from torch import nn


def match_parameters(module: nn.Module) -> None:
    """Sets ``in_features``, ``num_channels``, ``normalized_shape``, … of a module from its parameters.

    A depthwise convolution stays depthwise: its groups follow its channels.
    """
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        _match_convolution(module)
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vector = weight if weight is not None else module.running_mean
        if vector is not None:
            module.num_features = int(vector.shape[0])
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = int(weight.shape[0])


def _match_convolution(module: nn.modules.conv._ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.transposed and second == 1 and module.groups == module.in_channels:
        module.groups = first
    if not module.transposed and second == 1 and module.groups > 1:
        module.groups = first // (module.out_channels // module.groups)
    if module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.in_channels, module.out_channels = second * module.groups, first
