"""The other half: a small residual CNN with BatchNorm on Fashion-MNIST."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.train.sources import FASHION_MNIST, fashion_mnist

EXAMPLE = torch.zeros(2, 1, 28, 28)
_TRAIN, _TEST = 20000, 2000


class Block(nn.Module):
    """relu(shortcut(x) + conv-bn-relu-conv-bn(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', H/stride, W/stride]."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.bn2(self.conv2(inner)))


class CNN(nn.Module):
    """Stem with stride 2, three blocks of 1, 2 and 4 times `width` channels, mean, linear readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )
        self.readout = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 28, 28] → logits [B, 10]."""
        x = self.blocks(F.relu(self.bn(self.stem(x))))
        logits: Tensor = self.readout(x.mean((2, 3)))
        return logits


def build(width: int, seed: int) -> CNN:
    """The CNN with Kaiming-normal convolutions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CNN(width)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return model


@dataclass(frozen=True)
class Images:
    """Standardised images, float32 [N, 1, 28, 28], and labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@lru_cache(maxsize=1)
def images() -> Images:
    """The first 20 000 training and 2 000 test images of Fashion-MNIST."""
    data: Any = fashion_mnist(FASHION_MNIST)
    train, test = data.train, data.test
    return Images(
        train.inputs[0][:_TRAIN], train.targets[:_TRAIN], test.inputs[0][:_TEST], test.targets[:_TEST]
    )
