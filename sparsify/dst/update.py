"""The topology update that SET and RigL share: drop the smallest weights, grow as many elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.masks import topk_mask


def drop_and_grow(weight: Tensor, mask: Tensor, growth: Tensor, fraction: float) -> Tensor:
    """A new mask with exactly as many active entries as the old one.

    Drops the int(active · fraction) active weights of smallest magnitude, then activates as many of the
    positions not kept by largest growth score, just-dropped ones included. Ties go to the lower index.

    Args:
        weight: Any shape.
        mask: Bool, same shape: the current topology.
        growth: Same shape: RigL takes |dense gradient|, SET a random draw.
        fraction: Share of active weights to drop, in [0, 1].

    Returns:
        The new mask.

    Source: google-research/rigl; Evci et al. (arXiv 1911.11134), algorithm 1.
    """
    active = int(torch.count_nonzero(mask))
    dropped = int(active * fraction)
    if dropped == 0:
        return mask.clone()
    kept = topk_mask(weight.detach().abs().float().masked_fill(~mask, -torch.inf), active - dropped)
    return kept | topk_mask(growth.detach().float().masked_fill(kept, -torch.inf), dropped)
