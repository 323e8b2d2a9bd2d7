"""The forward multiplier of parallel branches, from the moments of their activation.

A layer computes σ(z); n branches compute c·Σ_j σ(z_j). At initialisation the z_j are independent and
distributed as z, so E[(Σ σ_j)²] = n·Var σ + n²·(E σ)². With

    c = √(E[σ²] / (n·Var σ + n²·(E σ)²))

the sum has the layer's second moment. For σ of mean zero c = 1/√n. Not in the papers: the rule that keeps a
branch sum at the scale that the dense model's learning rates were tuned for.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_REACH = 12.0
_POINTS = 48001


def branch_multiplier(branches: int, activation: Callable[[Tensor], Tensor] | None = None) -> float:
    """The factor c on the sum of `branches` nonlinear branches.

    Moments are taken over z ~ N(0, 1), what a normalisation puts out; by the trapezoidal rule, which is exact
    to rounding for smooth activations and, unlike Gauss–Hermite, does not mind the kink of ReLU.

    Args:
        branches: Number of branches, at least 1.
        activation: σ, elementwise; None where the branches end with a normalisation.

    Returns:
        c; 1/√n where σ has no second moment.
    """
    if activation is None:
        return 1 / math.sqrt(branches)
    z = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
    weight = torch.exp(-z.square() / 2)
    weight = weight / weight.sum()
    values = activation(z)
    mean, second = float((weight * values).sum()), float((weight * values.square()).sum())
    total = branches * (second - mean**2) + branches**2 * mean**2
    return math.sqrt(second / total) if total > 0 else 1 / math.sqrt(branches)
