"""The learning-rate schedule."""

from __future__ import annotations

import math


def cosine(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine towards zero.

    Args:
        step: Steps taken so far, from 0.
        total: Steps in all.
        warmup: Steps of warm-up.

    Returns:
        A factor in (0, 1]; the last step's is small, not zero.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
