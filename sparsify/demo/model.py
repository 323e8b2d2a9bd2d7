"""The demonstration's dense model: a small residual CNN for 8×8 images."""

from __future__ import annotations

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm and a shortcut (He et al. 2016, basic block).

    Args:
        c_in: Input channels.
        c_out: Output channels.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, c_in, H, W] to [N, c_out, H/stride, W/stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        result: torch.Tensor = self.relu(out + self.shortcut(x))
        return result


class DigitsCNN(nn.Module):
    """Residual CNN for scikit-learn's digits: [N, 1, 8, 8] to logits [N, 10].

    Args:
        widths: Channels of the stem and of the three blocks.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 128, 128)) -> None:
        super().__init__()
        stem, first, second, third = widths
        self.stem = nn.Sequential(nn.Conv2d(1, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU())
        self.block1 = ResidualBlock(stem, first, 1)
        self.block2 = ResidualBlock(first, second, 2)
        self.block3 = ResidualBlock(second, third, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(third, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps [N, 1, 8, 8] to logits [N, 10]."""
        out = self.block3(self.block2(self.block1(self.stem(x))))
        logits: torch.Tensor = self.fc(self.pool(out).flatten(1))
        return logits
