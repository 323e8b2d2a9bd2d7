"""The strength λ of a group penalty, raised until as many groups are left as wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass

_GAIN = 4.0
_LARGEST = 0.15


@dataclass(frozen=True)
class StrengthController:
    """Follows k + (m − k)·(1 − t/T)³ groups: λ grows while more are left, and falls while fewer are.

    One adjustment multiplies λ by exp(4·ln(left / wanted)), at most by e^±0.15: λ may be wrong by orders of
    magnitude at the start, and need not be known.

    Attributes:
        groups: m, groups at the start.
        wanted: k, groups at the end.
        steps: T, optimizer steps until k should be reached.
        every: Optimizer steps between two adjustments.
    """

    groups: int
    wanted: int
    steps: int
    every: int

    def target(self, step: int) -> float:
        """Groups that should be left after this step."""
        left = max(0.0, 1 - step / self.steps)
        return self.wanted + (self.groups - self.wanted) * left**3

    def adjusted(self, strength: float, alive: int, step: int) -> float:
        """λ from the next step on."""
        if step % self.every:
            return strength
        error = math.log(max(1, alive) / max(1.0, self.target(step)))
        return strength * math.exp(max(-_LARGEST, min(_LARGEST, _GAIN * error)))
