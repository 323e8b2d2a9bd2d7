"""Small models for the drop-in families, and a rewrite of each in one line."""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.graph.facts import Facts, facts
from sparsify.graph.trace import trace
from sparsify.graph.traced import Traced
from sparsify.masks.module import SparseGraphModule
from sparsify.passes import rewrite
from sparsify.planning import plan


class Dense(nn.Module):
    """A hidden linear layer with a GELU, and one with a normalisation and a ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(20, 3)
        self.first, self.second, self.norm = nn.Linear(16, 24), nn.Linear(24, 20), nn.LayerNorm(20)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.first(F.relu(self.stem(x))))
        return self.head(F.relu(self.norm(self.second(x))))


class Convolutions(nn.Module):
    """Grouped with GroupNorm and SiLU, strided with BatchNorm and PReLU, and one with nothing behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 3)
        self.grouped, self.group_norm = (
            nn.Conv2d(16, 24, 3, padding=1, groups=4, bias=False),
            nn.GroupNorm(6, 24),
        )
        self.strided, self.batch_norm = nn.Conv2d(24, 20, 3, 2, 1, dilation=1), nn.BatchNorm2d(20)
        self.slope = nn.PReLU(20)
        self.plain = nn.Conv2d(20, 16, (3, 1), padding="same")

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.group_norm(self.grouped(F.relu(self.stem(x)))))
        x = self.slope(self.batch_norm(self.strided(x)))
        return self.head(self.plain(x).mean((2, 3)))


class Sequence(nn.Module):
    """1-D convolution with BatchNorm alone, added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv1d(4, 12, 1), nn.Conv1d(12, 2, 1)
        self.conv, self.norm = nn.Conv1d(12, 12, 3, padding=1), nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.norm(self.conv(x))))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv3d(1, 8, 1), nn.Linear(8, 2)
        self.conv = nn.Conv3d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.conv(F.relu(self.stem(x)))).mean((2, 3, 4)))


class Twice(nn.Module):
    """One layer, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.shared(F.relu(self.shared(self.stem(x))))))


class Functional(nn.Module):
    """Raw parameters: one whose name has no place for a module of its own, and one that becomes a module."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(24, 16) / 4), nn.Parameter(torch.zeros(24))
        self.down = nn.Parameter(torch.randn(16, 24) / 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(F.linear(F.relu(self.stem(x)), self.weight, self.bias))
        return self.head(F.relu(F.linear(x, self.down)))


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "dense": (Dense, (6,)),
    "convolutions": (Convolutions, (3, 8, 8)),
    "sequence": (Sequence, (4, 9)),
    "volume": (Volume, (1, 4, 4, 4)),
    "twice": (Twice, (6,)),
    "functional": (Functional, (6,)),
}


def example(name: str, batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(batch, *MODELS[name][1], generator=torch.Generator().manual_seed(seed))


@functools.cache
def traced_model(name: str) -> tuple[nn.Module, Traced, Facts]:
    """Model, trace and facts; shared by all tests, which must leave them as they are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name][0]().eval()
    traced = trace(model, (example(name),))
    return model, traced, facts(traced)


def rewritten(name: str, *, seed: int = 0, parameterization: str = "supar", **options) -> SparseGraphModule:
    """A model of the table, rewritten; options are the plan's."""
    _, traced, known = traced_model(name)
    made = plan(traced, facts=known, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return rewrite(traced, made, facts=known, seed=seed, parameterization=parameterization)
