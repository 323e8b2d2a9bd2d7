"""Which runs a learning-rate curve still needs: a search in factors of 2, and more seeds around its best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from benchmarks.supar.runs import DIVERGED, Cell, Run, Runs, losses_of

LOWEST, HIGHEST = -14, 1


def wanted(cell: Cell, ledger: Runs, start: int, margin: int, also: Sequence[int] = ()) -> list[Run]:
    """Runs of seed 0 until the best rate has `margin` measured neighbours on either side.

    Args:
        cell: What to train.
        ledger: Finished runs.
        start: log2 of the rate to begin at; the curve is measured without gaps from there to its best.
        margin: Measured rates wanted beyond the best, on both sides.
        also: Further rates that are wanted.

    Returns:
        Missing runs; none when the curve is complete.
    """
    curve = _curve(cell, ledger)
    finite = [rate for rate, loss in curve.items() if loss < DIVERGED]
    rates = {*range(start - margin, start + margin + 1), *also}
    if first := _missing(cell, rates, ledger):
        # Half a neighbourhood would send the search the wrong way.
        return first
    if finite:
        best = min(finite, key=lambda rate: curve[rate])
        rates |= set(range(min(best, start) - margin, max(best, start) + margin + 1))
    elif curve:
        rates.add(min(curve) - 1)
    return _missing(cell, rates, ledger)


def _missing(cell: Cell, rates: Iterable[int], ledger: Runs) -> list[Run]:
    inside = sorted(rate for rate in rates if LOWEST <= rate <= HIGHEST)
    return [run for rate in inside if (run := Run(cell, rate)) not in ledger]


def _curve(cell: Cell, ledger: Runs) -> dict[int, float]:
    """Loss of seed 0 by log2 of the rate."""
    return {rate: seeds[0] for rate, seeds in losses_of(ledger, cell).items() if 0 in seeds}


def best_rate(cell: Cell, ledger: Runs) -> int:
    """log2 of the best rate: by the mean over seeds once the best of seed 0 and two others have them all.

    While seeds are still being added, the rates that happen to have more of them say nothing.

    Raises:
        ValueError: Nothing was run.
    """
    losses = losses_of(ledger, cell)
    curve = _curve(cell, ledger)
    first = min(curve, key=lambda rate: curve[rate])
    most = max(len(seeds) for seeds in losses.values())
    means = {rate: fmean(seeds.values()) for rate, seeds in losses.items() if len(seeds) == most}
    if len(means) < 3 or first not in means:
        return first
    return min(means, key=lambda rate: means[rate])


def more_seeds(cell: Cell, ledger: Runs, seeds: int, also: Sequence[int] = ()) -> list[Run]:
    """Runs of seeds 0 … seeds − 1 at the best rate and one factor of 2 to either side of it.

    The best is looked for among the rates that have all seeds, once there are any; where it then lies at
    their edge, the next rate is wanted too.
    """
    losses = losses_of(ledger, cell)
    if not losses:
        return []
    centre = best_rate(cell, ledger)
    rates = {centre - 1, centre, centre + 1, *also}
    return [
        run for rate in sorted(rates) for seed in range(seeds) if (run := Run(cell, rate, seed)) not in ledger
    ]
