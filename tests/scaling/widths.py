"""Dense models at any width: an MLP, a ResNet and a transformer, each in one class, with an example."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import MLP, ResNet

VOCABULARY, LENGTH, HEADS = 11, 6, 2


class Attention(nn.Module):
    """Attention with a fixed number of heads, so that the head size grows with the width."""

    def __init__(self, width: int, spelled: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.spelled, self.scale = spelled, (width // HEADS) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        if self.spelled:
            y = (q @ k.transpose(-1, -2) * self.scale).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.o(y.transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    """A pre-norm block whose inner width grows faster than its outer one."""

    def __init__(self, width: int, spelled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, spelled)
        self.up, self.down = nn.Linear(width, width**2 // 8), nn.Linear(width**2 // 8, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Token and position embeddings, two blocks, a norm and a readout."""

    def __init__(self, width: int, spelled: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList(Layer(width, spelled) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def built(build: Callable[[int], nn.Module], width: int, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(width).eval()


def _tokens(seed: int) -> Tensor:
    return torch.randint(0, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(seed))


def _noise(*shape: int) -> Callable[[int], Tensor]:
    return lambda seed: torch.randn(4, *shape, generator=torch.Generator().manual_seed(seed))


MODELS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], Tensor], str]] = {
    "mlp": (lambda width: MLP(width=width, dropout=0.0), _noise(12), "head"),
    "resnet": (lambda width: ResNet(width=width, dropout=0.0), _noise(1, 8, 8), "fc"),
    "transformer": (Transformer, _tokens, "head"),
    "transformer, spelled": (lambda width: Transformer(width, spelled=True), _tokens, "head"),
}
"""Name to builder by width, example by seed, and the readout's name."""
