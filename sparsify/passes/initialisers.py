"""What the given weights say about how they were initialised, and the defaults where they say nothing.

A weight looks untrained when it looks like independent draws: its standard deviation matches a known
initialiser of its module type and shape, and its tails are no heavier than a normal distribution's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor, nn

_SAMPLE = 1 << 18
_TOLERANCE = 0.03
_FIXED = (0.02, 0.01, 1.0)
_UNIFORM, _NORMAL = 1.8, 3.0


@dataclass(frozen=True)
class Look:
    """What a tensor's values look like.

    Attributes:
        constant: The value, where all are equal.
        mean: Mean of the values.
        std: Standard deviation of the values.
        kurtosis: Fourth standardised moment: 3 for normal, 1.8 for uniform draws.
        count: Number of values that were looked at.
    """

    constant: float | None
    mean: float
    std: float
    kurtosis: float
    count: int


def look(tensor: Tensor) -> Look:
    """Takes the moments of a tensor, of an evenly spaced sample where it is large."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return Look(0.0, 0.0, 0.0, 3.0, 0)
    low, high = torch.aminmax(flat)
    # An odd stride, so that a sample never falls into a few columns of a matrix.
    sample = flat[:: (flat.numel() // _SAMPLE) | 1].double()
    if low == high:
        return Look(float(low), float(low), 0.0, 3.0, sample.numel())
    mean = sample.mean()
    centred = sample - mean
    variance = centred.square().mean()
    kurtosis = float(centred.pow(4).mean() / variance.square()) if variance > 0 else 3.0
    return Look(None, float(mean), float(variance.sqrt()), kurtosis, sample.numel())


def default_std(module: nn.Module | None, shape: tuple[int, ...]) -> float:
    """Standard deviation that torch's own initialiser of this module type gives a weight.

    Linear and convolution weights are U(−1/√fan_in, 1/√fan_in), embeddings N(0, 1).
    """
    if isinstance(module, nn.Embedding):
        return 1.0
    return 1 / sqrt(3 * fan_in(shape))


def fan_in(shape: tuple[int, ...]) -> int:
    """Inputs of one output unit: everything but the first dimension."""
    return max(1, prod(shape[1:]))


def known_initialisers(shape: tuple[int, ...]) -> tuple[tuple[float, float], ...]:
    """Standard deviation and largest kurtosis of the initialisers in use for a weight of this shape.

    torch's default, which is uniform; Kaiming (both fans, gain 1 and √2) and Xavier, uniform or normal; and
    the fixed ones of transformer libraries, where a residual projection of an L-layer GPT has 0.02/√(2L).
    """
    fan, out = fan_in(shape), max(1, shape[0] * prod(shape[2:]))
    variances = (1 / fan, 2 / fan, 1 / out, 2 / out, 2 / (fan + out))
    scaled = tuple(0.02 / sqrt(2 * layers) for layers in range(1, 49))
    normal = (*(sqrt(variance) for variance in variances), *_FIXED, *scaled)
    return ((1 / sqrt(3 * fan), _UNIFORM), *((std, _NORMAL) for std in normal))


def untrained(seen: Look, shape: tuple[int, ...]) -> bool:
    """Whether values of this look could come straight from a known initialiser."""
    if seen.constant is not None:
        return True
    if abs(seen.mean) > 5 * seen.std / sqrt(seen.count):
        return False
    noise = 4 / sqrt(2 * seen.count)
    tails = 0.05 + 4 * sqrt(24 / seen.count)
    return any(
        abs(seen.std / std - 1) <= _TOLERANCE + noise and seen.kurtosis <= kurtosis + tails
        for std, kurtosis in known_initialisers(shape)
    )
