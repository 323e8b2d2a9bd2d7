"""Connections of units that a kept model did not have: where they are, and how large they start."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

_CHUNK = 1 << 22


def spread(units: int, places: int, count: int, generator: torch.Generator) -> Tensor:
    """A mask that gives every unit as many active places as any other, give or take one; places are drawn.

    Args:
        units: Rows.
        places: Columns.
        count: Active entries in all, at most `units · places`.
        generator: Source of randomness; the mask lives on its device.

    Returns:
        bool tensor [units, places].
    """
    device = generator.device
    mask = torch.zeros(units, places, dtype=torch.bool, device=device)
    each, rest = divmod(count, units)
    counts = torch.full((units,), each, device=device)
    # Evenly spaced, not drawn: the layers before and behind must choose the same units.
    counts[torch.arange(rest, device=device) * units // max(rest, 1)] += 1
    most = min(places, each + (rest > 0))
    if not most:
        return mask
    step = max(1, _CHUNK // places)
    for start in range(0, units, step):
        rows = mask[start : start + step]
        scores = torch.rand(rows.shape, generator=generator, device=device)
        taken = scores.topk(most, dim=1).indices
        wanted = torch.arange(most, device=device)[None, :] < counts[start : start + step, None]
        rows.scatter_(1, taken, wanted)
    return mask


def drawn_std(std: float, fan_in: int, active: float) -> float:
    """Standard deviation of a new unit's weights: its input is as large as that of a unit with all of them.

    Args:
        std: Of the weights of a unit that reads `fan_in` inputs.
        fan_in: Those inputs.
        active: Inputs that the new unit reads.
    """
    return std * sqrt(fan_in / max(1.0, active))
