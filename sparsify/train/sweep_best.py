"""What a sweep found: curves of loss over learning rate, the best rate of each, and how far it moves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparsify.train.sweep_cells import Cell, Outcome


@dataclass(frozen=True)
class Curve:
    """Losses over learning rates, at one parameterization, density and width.

    Attributes:
        parameterization: `supar`, `mup` or `sp`.
        density: Kept share of the masked weights.
        width: Width factor; None for the given widths.
        lrs: Learning rates of the dense base, rising.
        losses: Mean test loss over the seeds; None where a seed diverged or is missing.
        spreads: Standard deviation over the seeds; None with fewer than two.
        diverged: Number of seeds that diverged.
        lr: The rate of the lowest loss; None where all diverged.
        loss: That loss.
        edge: `low` or `high` where the best rate is the first or last of the grid: the optimum may lie
            outside.
    """

    parameterization: str
    density: float
    width: float | Literal["isoflop"] | None
    lrs: tuple[float, ...]
    losses: tuple[float | None, ...]
    spreads: tuple[float | None, ...]
    diverged: tuple[int, ...]
    lr: float | None
    loss: float | None
    edge: Literal["low", "high"] | None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)


def curves(cells: Sequence[Cell], outcomes: Mapping[Cell, Outcome]) -> tuple[Curve, ...]:
    """One curve for every parameterization, density and width, in the order of the cells."""
    keys = dict.fromkeys((cell.parameterization, cell.width, cell.density) for cell in cells)
    found = []
    for parameterization, width, density in keys:
        members = [
            c for c in cells if (c.parameterization, c.width, c.density) == (parameterization, width, density)
        ]
        lrs = tuple(sorted({cell.lr for cell in members}))
        points = [_point([outcomes.get(c) for c in members if c.lr == lr]) for lr in lrs]
        losses = tuple(mean for mean, _, _ in points)
        finite = [(loss, number) for number, loss in enumerate(losses) if loss is not None]
        best = min(finite)[1] if finite else None
        found.append(
            Curve(
                parameterization,
                density,
                width,
                lrs,
                losses,
                tuple(spread for _, spread, _ in points),
                tuple(diverged for _, _, diverged in points),
                None if best is None else lrs[best],
                None if best is None else losses[best],
                _edge(best, len(lrs)),
            )
        )
    return tuple(found)


def _point(outcomes: Sequence[Outcome | None]) -> tuple[float | None, float | None, int]:
    """Mean, spread, and number of diverged runs of one learning rate."""
    losses = [one.loss for one in outcomes if one is not None and one.loss is not None]
    diverged = sum(one is not None and one.status == "diverged" for one in outcomes)
    if not losses or len(losses) < len(outcomes):
        return None, None, diverged
    return statistics.fmean(losses), statistics.stdev(losses) if len(losses) > 1 else None, diverged


def _edge(best: int | None, count: int) -> Literal["low", "high"] | None:
    if best is None or count < 2:
        return None
    return "low" if best == 0 else "high" if best == count - 1 else None


def shift(found: Sequence[Curve]) -> dict[str, float | None]:
    """By how many factors of 2 the best learning rate moves over all densities and widths.

    Returns:
        Parameterization to log2(largest best rate / smallest); None where some curve has no best rate. Where
        one lies on the edge of the grid the true shift may be larger.
    """
    rates: dict[str, list[float | None]] = {}
    for curve in found:
        rates.setdefault(curve.parameterization, []).append(curve.lr)
    shifts: dict[str, float | None] = {}
    for name, best in rates.items():
        known = [rate for rate in best if rate is not None]
        shifts[name] = math.log2(max(known) / min(known)) if known and len(known) == len(best) else None
    return shifts
