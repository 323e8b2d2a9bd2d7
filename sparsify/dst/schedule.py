"""When the topology changes, and how much of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsify.errors import UserError


@dataclass(frozen=True)
class CosineSchedule:
    """Updates every `every` steps while step < `stop`, of a share that falls as a cosine.

    The share is f + (α − f)/2 · (1 + cos(πt/T_end)).

    Attributes:
        every: Optimizer steps between two updates.
        drop_fraction: α, the share of active weights that the first update replaces.
        stop: T_end, in optimizer steps.
        floor: f, what the share falls to.

    Source: Evci et al., "Rigging the Lottery" (arXiv 1911.11134), section 3.
    """

    every: int
    drop_fraction: float
    stop: float
    floor: float = 0.0

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
        floor = min(self.floor, self.drop_fraction)
        return floor + (self.drop_fraction - floor) / 2 * (1 + math.cos(math.pi * step / self.stop))


@dataclass(frozen=True)
class CubicSchedule:
    """Updates every `every` steps from `start` on; what is left to remove falls as (1 − (t − t0)/(nΔT))³.

    t0 is the last multiple of `every` up to `start`, and nΔT the multiples that fit before `stop`.

    Attributes:
        every: ΔT, optimizer steps between two updates.
        start: Nothing is removed up to this step.
        stop: No update falls after this step.

    Source: Zhu and Gupta, "To prune, or not to prune" (arXiv 1710.01878), equation 1.
    """

    every: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UserError(f"update_every must be at least 1, got {self.every}")
        if self.last <= self.first:
            raise UserError(
                f"no pruning step fits between step {self.start} and step {self.stop} with update_every = "
                f"{self.every}; lower update_every, or prune over a longer share of the run"
            )

    @property
    def first(self) -> int:
        """t0."""
        return self.start // self.every * self.every

    @property
    def last(self) -> int:
        """t0 + nΔT: the step after which nothing is left to remove."""
        return self.stop // self.every * self.every

    def due(self, step: int) -> bool:
        """Whether an update falls on this step (steps count from 1)."""
        return step % self.every == 0 and self.first < step <= self.last

    def remaining(self, step: int) -> float:
        """Share of all removals that is still to come after the update of this step."""
        done = (min(max(step, self.first), self.last) - self.first) / (self.last - self.first)
        return (1.0 - done) ** 3
