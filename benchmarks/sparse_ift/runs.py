"""What is trained: families, sparsities, methods, and the sizes of the study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks.study.ledger import Ledger


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        model: `resnet` or `gpt`.
        family: `dense`, or a family of the same FLOPs.
        sparsity: Of the masked weights; of a dense model, the sparsity at which the wide family has its
            width, and 0 for the base.
        method: `static` or `rigl`; dense models have neither, `none`.
        parameterization: `sp` takes the base's initial spread and learning rates, `supar` those of SμPar.
        width: Of the dense base.
        pool: ResNet: whether the stem ends with max-pooling.
        batch: Images or windows in a step.
        steps: Optimizer steps.
        update_every: Steps between two updates of RigL.
        lr: Peak learning rate of the base.
        seed: Decides weights, masks and batches; runs of one seed see the same batches.
    """

    model: str
    family: str
    sparsity: float
    method: str
    parameterization: str
    width: int
    pool: bool
    batch: int
    steps: int
    update_every: int
    lr: float
    seed: int = 0


Cell = tuple[str, float, str, str]
"""Family, sparsity, method, parameterization."""

BASE: Cell = ("dense", 0.0, "none", "sp")


@dataclass(frozen=True)
class Of:
    """How one model is trained.

    Attributes:
        width: Of the dense base.
        steps: Optimizer steps of a run.
        batch: Images or windows in a step.
        rates: Learning rates that the base is tuned over, with seed 0.
        cells: What is compared with the base.
        update_every: Steps between two updates of RigL.
        pool: ResNet: whether the stem ends with max-pooling.
    """

    width: int
    steps: int
    batch: int
    rates: tuple[float, ...]
    cells: tuple[Cell, ...]
    update_every: int = 100
    pool: bool = False

    def tuning(self, dense: Run) -> list[Run]:
        """The runs of the base that decide the learning rate."""
        return [replace(dense, lr=rate) for rate in self.rates]


def base(name: str, of: Of) -> Run:
    """The dense run of seed 0 at the first of the rates."""
    return Run(name, *BASE, of.width, of.pool, of.batch, of.steps, of.update_every, of.rates[0])


def tuned(dense: Run, of: Of, ledger: Ledger[Run]) -> Run | None:
    """The base at its best rate (lowest test loss), or None while some are missing or none converged."""
    runs = of.tuning(dense)
    if any(run not in ledger for run in runs):
        return None
    losses = {run: ledger[run]["loss"] for run in runs if ledger[run]["loss"] is not None}
    return min(losses, key=lambda run: losses[run]) if losses else None


def cell(dense: Run, which: Cell) -> Run:
    """The run of a cell with the settings and the seed of the tuned base."""
    family, sparsity, method, parameterization = which
    return replace(dense, family=family, sparsity=sparsity, method=method, parameterization=parameterization)


def wider(sparsity: float) -> Cell:
    """The dense model of the width that the wide family has at a sparsity."""
    return ("dense", sparsity, "none", "sp")


def wanted(dense: Run, of: Of, seeds: int) -> Iterator[Run]:
    """All runs beside the tuning, one seed after the other."""
    for seed in range(seeds):
        for which in (BASE, *of.cells):
            yield cell(replace(dense, seed=seed), which)


def both(family: str, sparsity: float, parameterization: str) -> tuple[Cell, Cell]:
    """Static masks and RigL."""
    return (family, sparsity, "static", parameterization), (family, sparsity, "rigl", parameterization)
