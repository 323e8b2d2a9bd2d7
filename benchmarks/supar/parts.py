"""The parts of the study: each says which runs it still needs, given those that are finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import log2
from typing import Any

from benchmarks.supar.runs import Cell, Run, Runs, loss_of, losses_of
from benchmarks.supar.search import best_rate, more_seeds, wanted

SEEDS = 3
CNN_START = -4


@dataclass(frozen=True)
class Size:
    """How large the study is.

    Attributes:
        width: Of the GPT.
        narrow: Width of the dense base that the wide family starts from.
        channels: Of the CNN.
        steps: Optimizer steps of a GPT run.
        cnn_steps: Of a CNN run.
        densities: Of masked GPTs, in the order in which they are trained.
        wide: Sparsities on the iso-FLOP diagonal.
        rigl: Densities under RigL.
        cnn: Densities of the CNN.
        longer: Densities trained longer.
        times: How much longer.
        proxy: Width of the small dense model that a large sparse one is tuned on.
        large: Width of that large one.
        transfer: Its densities.
        seeds: Seeds around every optimum.
        axes: What is tuned of the base, one after the other, in factors of 2.
        start: log2 of the first learning rate of the tuning.
        margin: Rates beyond the best one that a curve needs.
    """

    width: int = 192
    narrow: int = 96
    channels: int = 16
    steps: int = 150
    cnn_steps: int = 200
    densities: tuple[float, ...] = (1 / 8, 1 / 32, 1 / 2, 1 / 16, 1 / 4)
    wide: tuple[float, ...] = (0.5, 0.75, 0.875)
    rigl: tuple[float, ...] = (1 / 4, 1 / 16)
    cnn: tuple[float, ...] = (1 / 4, 1 / 16)
    longer: tuple[float, ...] = (1 / 32, 1 / 8)
    times: int = 4
    proxy: int = 64
    large: int = 256
    transfer: tuple[float, ...] = (1 / 4, 1 / 16)
    seeds: int = SEEDS
    axes: tuple[str, ...] = ("sigma", "alpha_in", "alpha_out")
    start: int = -8
    margin: int = 1


QUICK = Size(
    width=32,
    narrow=32,
    channels=8,
    steps=3,
    cnn_steps=2,
    densities=(1 / 4,),
    wide=(0.75,),
    rigl=(1 / 4,),
    cnn=(1 / 4,),
    longer=(1 / 4,),
    times=2,
    proxy=32,
    large=64,
    transfer=(1 / 4,),
    seeds=1,
    axes=(),
    start=-4,
    margin=0,
)


@dataclass(frozen=True)
class Bases:
    """The tuned dense bases and the best rates of their learning-rate curves.

    Attributes:
        mup: The base of SμPar and μP: σ, α_in and α_out tuned.
        sp: The base of SP: σ tuned, no multipliers.
    """

    mup: Cell
    sp: Cell

    def of(self, parameterization: str) -> Cell:
        """The base of a parameterization."""
        return self.sp if parameterization == "sp" else self.mup


def tuned(size: Size, ledger: Runs) -> tuple[Bases | None, list[Run]]:
    """The two bases, once the runs that decide them are there; else those runs."""
    start = Cell(width=size.width, steps=size.steps, sigma=0.04)
    mup, missing_mup = _descend(replace(start, alpha_in=8.0), size.axes, size, ledger)
    sp, missing_sp = _descend(start, tuple(axis for axis in size.axes if axis == "sigma"), size, ledger)
    missing = missing_mup + missing_sp
    return (None if missing else Bases(mup, sp)), missing


def _descend(cell: Cell, axes: tuple[str, ...], size: Size, ledger: Runs) -> tuple[Cell, list[Run]]:
    """One axis after the other: doubles and halves it until the lowest loss lies between two higher ones."""
    rate = size.start
    missing = wanted(cell, ledger, rate, size.margin)
    for axis in axes:
        while not missing:
            rate = _seed_zero_best(cell, ledger)
            beside = [_changed(cell, axis, factor) for factor in (0.5, 2.0)]
            missing = [run for one in beside for run in wanted(one, ledger, rate, size.margin)]
            if missing:
                break
            best = min((cell, *beside), key=lambda one: _lowest(one, ledger))
            if best == cell:
                break
            cell = best
    return cell, missing


def _changed(cell: Cell, axis: str, factor: float) -> Cell:
    changes: dict[str, Any] = {axis: getattr(cell, axis) * factor}
    return replace(cell, **changes)


def _lowest(cell: Cell, ledger: Runs) -> float:
    return loss_of(ledger, Run(cell, _seed_zero_best(cell, ledger)))


def _seed_zero_best(cell: Cell, ledger: Runs) -> int:
    losses = {rate: seeds[0] for rate, seeds in losses_of(ledger, cell).items() if 0 in seeds}
    return min(losses, key=lambda rate: losses[rate])


def around_bases(bases: Bases, ledger: Runs, effort: Effort) -> list[Run]:
    """Part 1: the learning-rate curves of the dense bases."""
    return _curves({base: base for base in (bases.mup, bases.sp)}, ledger, effort)


def grid_cells(size: Size, bases: Bases) -> list[Cell]:
    """The cells of the grid density × parameterization, without the bases."""
    return [bases.of(kind).at(density, kind) for density in size.densities for kind in ("supar", "mup", "sp")]


def wide_cells(size: Size, bases: Bases) -> list[Cell]:
    """The cells of the iso-FLOP diagonal, without their bases."""
    return [
        replace(bases.of(kind), width=size.narrow).at(1 - sparsity, kind, family="wide")
        for sparsity in size.wide
        for kind in ("supar", "mup", "sp")
    ]


def longer_bases(size: Size, bases: Bases) -> dict[str, Cell]:
    """The bases by parameterization, trained longer; μP is left out."""
    return {kind: replace(bases.of(kind), steps=size.times * size.steps) for kind in ("supar", "sp")}


def longer_cells(size: Size, bases: Bases) -> list[Cell]:
    """Cells of the grid that are trained longer, without their bases."""
    own = longer_bases(size, bases)
    return [base.at(density, kind) for density in size.longer for kind, base in own.items()]


def rigl_cells(size: Size, bases: Bases, gammas: tuple[float, ...] = (1.0, 0.5)) -> list[Cell]:
    """RigL at every density: SμPar of every γ, and μP, which is γ = 0."""
    cells = []
    for density in size.rigl:
        cells += [bases.mup.at(density, "supar", method="rigl", gamma=gamma) for gamma in gammas]
        cells.append(bases.mup.at(density, "mup", method="rigl"))
    return cells


def cnn_base(size: Size) -> Cell:
    """The dense CNN; σ is that of its own initialisation."""
    return Cell(model="cnn", width=size.channels, steps=size.cnn_steps, batch=64)


def cnn_cells(size: Size) -> list[Cell]:
    """SμPar as it is behind BatchNorm, with its learning rates corrected there too, and SP."""
    base, cells = cnn_base(size), []
    for density in size.cnn:
        cells.append(base.at(density, "supar"))
        cells.append(base.at(density, "supar", rate_behind_norm=True))
        cells.append(base.at(density, "sp"))
    return cells


@dataclass(frozen=True)
class Effort:
    """How well a round measures a curve: neighbours of the best rate, and seeds around it."""

    margin: int
    seeds: int


def efforts(size: Size) -> tuple[Effort, Effort]:
    """The rounds: every optimum once, then with all seeds."""
    return Effort(size.margin, 1), Effort(size.margin, size.seeds)


def _curves(bases: Mapping[Cell, Cell], ledger: Runs, effort: Effort) -> list[Run]:
    """Learning-rate curves of cells, from their base's best rate on; then seeds around the best and there."""
    found: list[Run] = []
    for cell, base in bases.items():
        start = best_rate(base, ledger)
        missing = wanted(cell, ledger, start, effort.margin)
        if not missing and effort.seeds > 1:
            missing = more_seeds(cell, ledger, effort.seeds, also=(start,))
        found += missing
    return found


def grid(size: Size, bases: Bases, ledger: Runs, effort: Effort) -> list[Run]:
    """Parts 2 and 3: masked GPTs over density and parameterization."""
    return _curves(
        {cell: bases.of(cell.parameterization) for cell in grid_cells(size, bases)}, ledger, effort
    )


def wide(size: Size, bases: Bases, ledger: Runs, effort: Effort) -> list[Run]:
    """Part 4: wider and sparser at the same FLOPs."""
    own = {kind: replace(bases.of(kind), width=size.narrow) for kind in ("supar", "mup", "sp")}
    missing = _curves({own["mup"]: bases.mup, own["sp"]: bases.sp}, ledger, effort)
    if missing:
        return missing
    return _curves({cell: own[cell.parameterization] for cell in wide_cells(size, bases)}, ledger, effort)


def rigl(size: Size, bases: Bases, ledger: Runs, effort: Effort) -> list[Run]:
    """Part 6: RigL, with γ = 1, ½ and 0; then with the γ that those suggest."""
    first = efforts(size)[0]
    given = dict.fromkeys(rigl_cells(size, bases), bases.mup)
    missing = _curves(given, ledger, first)
    if missing:
        return missing
    cells = rigl_cells(size, bases, (fitted_gamma(size, bases, ledger),))
    return _curves(given | dict.fromkeys(cells, bases.mup), ledger, effort)


def longer(size: Size, bases: Bases, ledger: Runs, effort: Effort) -> list[Run]:
    """Part 8: whether parts 2 and 3 come from the shortness of the runs. One seed."""
    own = longer_bases(size, bases)
    effort = efforts(size)[0]
    missing = _curves({base: bases.of(kind) for kind, base in own.items()}, ledger, effort)
    if missing:
        return missing
    return _curves({cell: own[cell.parameterization] for cell in longer_cells(size, bases)}, ledger, effort)


def proxies(size: Size, ledger: Runs) -> tuple[Bases | None, list[Run]]:
    """Like `tuned`, for the small models of part 5."""
    return tuned(replace(size, width=size.proxy), ledger)


def transfer_cells(size: Size, small: Bases) -> list[Cell]:
    """Large sparse models with the settings of a dense one a quarter as wide."""
    return [
        replace(small.of(kind), width=size.large, base_width=size.proxy).at(density, kind)
        for density in size.transfer
        for kind in ("supar", "mup", "sp")
    ]


def transfer(size: Size, bases: Bases, ledger: Runs, effort: Effort) -> list[Run]:
    """Part 5: tuned on a dense model a quarter as wide."""
    small, missing = proxies(size, ledger)
    if small is None:
        return missing
    missing = _curves({base: base for base in (small.mup, small.sp)}, ledger, effort)
    if missing:
        return missing
    return _curves(
        {cell: small.of(cell.parameterization) for cell in transfer_cells(size, small)}, ledger, effort
    )


def fitted_gamma(size: Size, bases: Bases, ledger: Runs) -> float:
    """γ that would keep the optimum where the base's is, from μP's drift under RigL.

    μP's best rate of seed 0 moves as ρ^−γ, by least squares through the base's own; in [0.05, 1].
    """
    home = _seed_zero_best(bases.mup, ledger)
    pairs = [
        (-log2(density), _seed_zero_best(bases.mup.at(density, "mup", method="rigl"), ledger) - home)
        for density in size.rigl
    ]
    slope = sum(x * y for x, y in pairs) / sum(x * x for x, _ in pairs)
    return round(min(1.0, max(0.05, slope)), 2)


def cnn(size: Size, ledger: Runs, effort: Effort) -> list[Run]:
    """Part 7: the BatchNorm CNN with SGD."""
    base = cnn_base(size)
    missing = wanted(base, ledger, CNN_START, effort.margin)
    if not missing and effort.seeds > 1:
        missing = more_seeds(base, ledger, effort.seeds)
    return missing or _curves(dict.fromkeys(cnn_cells(size), base), ledger, effort)


PARTS = ("tune", "grid", "wide", "transfer", "rigl", "cnn", "longer")
_OF_GPTS = {"grid": grid, "wide": wide, "transfer": transfer, "rigl": rigl, "longer": longer}


def wanted_runs(size: Size, ledger: Runs, part: str) -> Iterator[Run]:
    """Missing runs of a part that can be started now, those included that it rests on.

    Args:
        size: How large the study is.
        ledger: Finished runs.
        part: One of `PARTS`.
    """
    if part == "cnn":
        for effort in efforts(size):
            yield from cnn(size, ledger, effort)
        return
    bases, missing = tuned(size, ledger)
    yield from missing
    if bases is None:
        return
    for effort in efforts(size):
        yield from around_bases(bases, ledger, effort)
        if part in _OF_GPTS:
            yield from _OF_GPTS[part](size, bases, ledger, effort)
