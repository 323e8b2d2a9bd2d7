"""What finished runs say: learning-rate curves, their optima, and losses at given rates."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.supar.runs import DIVERGED, Cell, Runs, losses_of


@dataclass(frozen=True)
class Point:
    """Runs of one cell at one learning rate, over seeds.

    Attributes:
        mean: Mean validation loss, in nats.
        spread: Standard deviation over the seeds; None with fewer than two.
        seeds: Number of seeds.
    """

    mean: float
    spread: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.spread is None else f" ± {self.spread:.3f}")


@dataclass(frozen=True)
class Curve:
    """Loss against learning rate, of one cell.

    Attributes:
        cell: What was trained.
        points: By log2 of the rate, in rising order; runs that diverged are left out.
    """

    cell: Cell
    points: dict[int, Point]

    @classmethod
    def of(cls, cell: Cell, ledger: Runs) -> Curve:
        """The curve of a cell; without points where nothing was run."""
        points = {}
        for rate, seeds in sorted(losses_of(ledger, cell).items()):
            values = list(seeds.values())
            if max(values) < DIVERGED:
                spread = stdev(values) if len(values) > 1 else None
                points[rate] = Point(fmean(values), spread, len(values))
        return cls(cell, points)

    @property
    def best(self) -> int:
        """log2 of the best rate on the grid, among the rates with the most seeds.

        Raises:
            ValueError: The curve is empty.
        """
        most = max((point.seeds for point in self.points.values()), default=0)
        full = {rate: point.mean for rate, point in self.points.items() if point.seeds == most}
        return min(full, key=lambda rate: full[rate])

    @property
    def bracketed(self) -> bool:
        """Whether the best rate lies between two that were measured; else the true one may lie beyond."""
        return {self.best - 1, self.best + 1} <= self.points.keys()

    @property
    def optimum(self) -> float:
        """log2 of the rate at the bottom of the parabola through the best point and its two neighbours.

        The best itself where it lies at an end.
        """
        best = self.best
        if not self.bracketed:
            return float(best)
        left, middle, right = (self.points[rate].mean for rate in (best - 1, best, best + 1))
        bend = left - 2 * middle + right
        return best + max(-0.5, min(0.5, (left - right) / (2 * bend))) if bend > 0 else float(best)

    def to_json(self) -> dict[str, Any]:
        """Points and optima."""
        return {
            "best_log2_lr": self.best,
            "bracketed": self.bracketed,
            "optimum_log2_lr": round(self.optimum, 2),
            "points": {
                str(rate): {"mean": point.mean, "std": point.spread, "seeds": point.seeds}
                for rate, point in self.points.items()
            },
        }
