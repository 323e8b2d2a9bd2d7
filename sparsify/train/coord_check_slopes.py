"""Slopes of log mean |activation| over log density or log width, and what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Values = list[list[list[float]]]
"""Indices: point, seed, step."""

FLAT = 0.35
"""Largest |slope| of a parameterization that transfers; the reference shows 0.27 for SμPar."""
STEEP = 0.7
"""What a parameterization without the correction must exceed, else the check proves nothing."""


def slopes(x: Sequence[float], values: Values, step: int) -> tuple[float | None, float | None]:
    """Least-squares slope of log value over log x at one step.

    Args:
        x: One density or width for each point.
        values: [point][seed][step].
        step: Which step; -1 for the last.

    Returns:
        Mean over the seeds and their standard deviation; None and None where a value is zero or not finite,
        or all x are equal.
    """
    table = np.array([[seed[step] for seed in seeds] for seeds in values], dtype=float)
    if not (np.isfinite(table).all() and (table > 0).all()) or len(set(x)) < 2:
        return None, None
    found = np.polyfit(np.log(np.array(x, dtype=float)), np.log(table), 1)[0]
    return float(found.mean()), float(found.std())


def shares(
    found: Mapping[str, float | None], judged: Mapping[str, bool], holds: Callable[[float], bool]
) -> float | None:
    """Share of the judged layers whose slope holds; a slope of None does not.

    Returns:
        The share; None where no layer is judged.
    """
    counted = [slope for name, slope in found.items() if judged[name]]
    if not counted:
        return None
    return sum(slope is not None and math.isfinite(slope) and holds(slope) for slope in counted) / len(
        counted
    )
