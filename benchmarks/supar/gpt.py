"""The model of the study: a pre-norm GPT, written plainly, with the two multipliers that μP tunes.

Logits are α_out · W_out LN(h), the stream starts at α_in · (token + position). The head size is fixed, so a
wider model has more heads and attention keeps 1/√d_head.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 256


@dataclass(frozen=True)
class GPTShape:
    """Sizes of the model.

    Attributes:
        width: Of the residual stream; a multiple of `head`.
        layers: Number of blocks.
        head: Size of one attention head.
        length: Longest sequence, in bytes.
    """

    width: int = 192
    layers: int = 2
    head: int = 32
    length: int = 64


class Attention(nn.Module):
    """Causal self-attention with separate projections."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.head = shape.head
        self.query = nn.Linear(shape.width, shape.width)
        self.key = nn.Linear(shape.width, shape.width)
        self.value = nn.Linear(shape.width, shape.width)
        self.out = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] → [B, T, d]."""
        batch, length, width = x.shape
        heads = (batch, length, width // self.head, self.head)
        query, key, value = (
            layer(x).view(heads).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        joined: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return joined


class Block(nn.Module):
    """x + Attention(LN x), then x + MLP(LN x)."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width)
        self.attention = Attention(shape)
        self.norm2 = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width)
        self.down = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] → [B, T, d]."""
        x = x + self.attention(self.norm1(x))
        return torch.add(x, self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """Predicts the next byte.

    Args:
        shape: Sizes.
        alpha_in: Factor on the embeddings.
        alpha_out: Factor on the logits.
    """

    def __init__(self, shape: GPTShape, alpha_in: float = 1.0, alpha_out: float = 1.0) -> None:
        super().__init__()
        self.alpha_in, self.alpha_out = alpha_in, alpha_out
        self.tokens = nn.Embedding(VOCABULARY, shape.width)
        self.positions = nn.Embedding(shape.length, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.readout = nn.Linear(shape.width, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Bytes [B, T] → logits [B, T, 256]."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.alpha_in * (self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.alpha_out * self.readout(self.norm(x))
        return logits


def standard_deviations(model: GPT, sigma: float) -> dict[str, float]:
    """σ of every weight matrix; σ/√(2·layers) where a block writes to the residual stream."""
    residual = sigma / sqrt(2 * len(model.blocks))
    return {
        name: residual
        if name.endswith(("out.weight", "down.weight")) and name.startswith("blocks")
        else sigma
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2
    }


@torch.no_grad()
def initialise(model: GPT, sigma: float, seed: int) -> None:
    """Draws all matrices at their standard deviations, and sets biases to zero."""
    generator = torch.Generator().manual_seed(seed)
    spread = standard_deviations(model, sigma)
    for name, parameter in model.named_parameters():
        if name in spread:
            parameter.normal_(0.0, spread[name], generator=generator)
        elif name.endswith("bias"):
            parameter.zero_()
