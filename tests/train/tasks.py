"""Small models and data for the tests of training."""

from __future__ import annotations

import torch
from torch import nn

from sparsify.masks import random_mask, set_mask
from sparsify.train import Arrays, Data


def points(seed: int = 0, examples: int = 96) -> Data:
    """Three noisy clusters in six dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, 6, generator=generator)
    labels = torch.arange(examples) % 3
    x = centres[labels] + torch.randn(examples, 6, generator=generator)
    border = 3 * examples // 4
    return Data(
        "points",
        "classification",
        Arrays((x[:border],), labels[:border]),
        Arrays((x[border:],), labels[border:]),
    )


def network(seed: int = 0, *, masked: bool = True) -> nn.Sequential:
    """A perceptron with everything that has state: batch norm, dropout, masks."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )
    if masked:
        generator = torch.Generator().manual_seed(seed)
        for index in (0, 4):
            weight = model[index].weight
            set_mask(model[index], "weight", random_mask(weight.shape, weight.numel() // 4, generator))
    return model


def points_as_mapping() -> dict[str, torch.Tensor]:
    """What a user's function for `package.module:function` may return."""
    data = points()
    return {"x": data.train.inputs[0], "y": data.train.targets}


def nothing() -> None:
    """A function that returns no data."""
