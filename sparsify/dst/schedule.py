"""When the topology changes, and how much of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsify.errors import UserError


@dataclass(frozen=True)
class CosineSchedule:
    """Updates every `every` steps while step < `stop`, of a share that falls as α/2 · (1 + cos(πt/T_end)).

    Attributes:
        every: Optimizer steps between two updates.
        drop_fraction: α, the share of active weights that the first update replaces.
        stop: T_end, in optimizer steps.

    Source: Evci et al., "Rigging the Lottery" (arXiv 1911.11134), section 3.
    """

    every: int
    drop_fraction: float
    stop: float

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"update_every must be at least 1, got {self.every}")
        if not 0.0 <= self.drop_fraction <= 1.0:
            raise UserError(f"drop_fraction must lie in [0, 1], got {self.drop_fraction}")

    def due(self, step: int) -> bool:
        """Whether an update falls on this step (steps count from 1)."""
        return step > 0 and step % self.every == 0 and step < self.stop

    def next_due(self, step: int) -> int | None:
        """The first update after this step, or None when there is none left."""
        candidate = (step // self.every + 1) * self.every
        return candidate if candidate < self.stop else None

    def fraction(self, step: int) -> float:
        """Share of active weights to replace at this step."""
        if step >= self.stop:
            return 0.0
        return self.drop_fraction / 2 * (1 + math.cos(math.pi * step / self.stop))
