"""Modules of the canonical graph that torch.nn does not have."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ScaledDotProductAttention(nn.Module):
    """`torch.nn.functional.scaled_dot_product_attention` whose dropout follows train() and eval().

    Args:
        dropout_p: Probability to drop an attention weight in training mode.
        is_causal: As in the function.
        scale: Factor on the logits; None is 1/sqrt(head size).
        enable_gqa: As in the function.
    """

    def __init__(
        self,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        super().__init__()
        self.dropout_p = dropout_p
        self.is_causal = is_causal
        self.scale = scale
        self.enable_gqa = enable_gqa

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attends: [..., q, d], [..., k, d], [..., k, e] to [..., q, e].

        Args:
            query: Queries.
            key: Keys.
            value: Values.
            attn_mask: Bool or additive mask that broadcasts to [..., q, k].
        """
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=self.dropout_p if self.training else 0.0,
            is_causal=self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )

    def extra_repr(self) -> str:
        """Settings for repr()."""
        return (
            f"dropout_p={self.dropout_p}, is_causal={self.is_causal}, scale={self.scale}, "
            f"enable_gqa={self.enable_gqa}"
        )
