"""The VGG-like CNN; the ResNet is that of the other studies."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.study.models import ResNet
from benchmarks.wgsef.runs import Run


class VGG(nn.Module):
    """Three stages of 1, 2 and 4 times `width` channels with batch norm, then two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        stages = ((1, width), (width, 2 * width, 2 * width), (2 * width, 4 * width, 4 * width))
        layers: list[nn.Module] = []
        for stage in stages:
            for inputs, outputs in pairwise(stage):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
                layers += [nn.BatchNorm2d(outputs), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Linear(4 * width * 9, 4 * width)
        self.readout = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 28, 28] → logits [B, 10]."""
        logits: Tensor = self.readout(torch.relu(self.hidden(self.features(x).flatten(1))))
        return logits


def build(run: Run) -> nn.Module:
    """The dense model of a run, its weights decided by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return VGG(run.width) if run.model == "vgg" else ResNet(run.width, pool=True)
