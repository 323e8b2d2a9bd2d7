"""The strength λ of a group penalty, raised until as many groups are left as wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass

_GAIN = 0.5
_LOOK_AHEAD = 0.1
_FASTEST_RISE = 0.1
_FASTEST_FALL = 0.2


@dataclass(frozen=True)
class StrengthController:
    """Leads the number of groups that are left from m to k along a straight line.

    Groups answer to λ with a delay, since they must shrink before they go. So λ follows what will be left a
    tenth of T ahead if the present fall goes on: it rises while that is too many, at most by e^0.1 an
    adjustment, and falls up to twice as fast. It may be wrong by an order of magnitude at the start.

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

    def target(self, step: float) -> float:
        """Groups that should be left after this step."""
        return self.wanted + (self.groups - self.wanted) * max(0.0, 1 - step / self.steps)

    def due(self, step: int) -> bool:
        """Whether λ is adjusted after this step."""
        return step % self.every == 0

    def adjusted(self, strength: float, alive: int, falling: float, step: int) -> float:
        """λ from the next step on.

        Args:
            strength: λ now.
            alive: Groups that are left.
            falling: Groups that go in a step, of late.
            step: Optimizer steps so far.
        """
        ahead = _LOOK_AHEAD * self.steps
        expected = max(1.0, alive - falling * ahead)
        error = math.log(expected / max(1.0, self.target(step + ahead)))
        change = max(-_FASTEST_FALL, min(_FASTEST_RISE, _GAIN * error))
        return strength * math.exp(change)
