"""Small models and data for the tests of training."""

from __future__ import annotations

import torch
from torch import nn

from sparsify.masks import FanIn, random_mask, set_mask
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


def fan_in_network(seed: int = 0) -> nn.Sequential:
    """The same with masks of a constant fan-in."""
    model = network(seed, masked=False)
    generator = torch.Generator().manual_seed(seed)
    pattern = FanIn()
    for index in (0, 4):
        shape = tuple(model[index].weight.shape)
        set_mask(model[index], "weight", pattern.random(shape, pattern.count(shape, 0.25), generator))
    return model


def points_as_mapping() -> dict[str, torch.Tensor]:
    """What a user's function for `package.module:function` may return."""
    data = points()
    return {"x": data.train.inputs[0], "y": data.train.targets}


def nothing() -> None:
    """A function that returns no data."""


def sequences(seed: int = 0, examples: int = 96) -> Data:
    """Counting sequences of eight tokens with -100 where the last targets are padding."""
    starts = torch.randint(0, 10, (examples, 1), generator=torch.Generator().manual_seed(seed))
    tokens = (starts + torch.arange(9)) % 10
    targets = tokens[:, 1:].clone()
    targets[::2, -3:] = -100
    border = 3 * examples // 4
    parts = [Arrays((tokens[rows, :-1],), targets[rows]) for rows in (slice(border), slice(border, None))]
    return Data("sequences", "language", *parts)


def token_network(seed: int = 0) -> nn.Sequential:
    """Logits over ten tokens for each position."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Embedding(10, 12), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 10))


def values(seed: int = 0, examples: int = 96) -> Data:
    """A linear function of four values."""
    x = torch.randn(examples, 4, generator=torch.Generator().manual_seed(seed))
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0])
    border = 3 * examples // 4
    return Data("values", "regression", Arrays((x[:border],), y[:border]), Arrays((x[border:],), y[border:]))


def absolute_error(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A loss of the user's own."""
    return (output.reshape(targets.shape) - targets).abs().mean()
