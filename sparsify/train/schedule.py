"""The learning-rate schedules: linear warm-up, then one of three shapes."""

from __future__ import annotations

import math
from collections.abc import Callable


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
    return 0.5 * (1 + math.cos(math.pi * _progress(step, total, warmup)))


def linear(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, then a straight line towards zero; see `cosine`."""
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 - _progress(step, total, warmup)


def constant(step: int, total: int, warmup: int) -> float:
    """Factor on the learning rate: linear warm-up, then 1; see `cosine`."""
    return (step + 1) / warmup if step < warmup else 1.0


SHAPES: dict[str, Callable[[int, int, int], float]] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
}


def _progress(step: int, total: int, warmup: int) -> float:
    return min(1.0, (step - warmup) / max(1, total - warmup))
