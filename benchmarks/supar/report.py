"""The summary, the plots and the tables of the study, from the runs that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.study.document import NOT_RUN, refresh
from benchmarks.supar import plots, tables
from benchmarks.supar.corpus import corpus
from benchmarks.supar.curves import Curve
from benchmarks.supar.parts import (
    PARTS,
    Bases,
    Size,
    cnn_base,
    cnn_cells,
    fitted_gamma,
    grid_cells,
    longer_bases,
    longer_cells,
    proxies,
    rigl_cells,
    transfer_cells,
    tuned,
    wide_cells,
)
from benchmarks.supar.runs import Cell, Runs

NAMES = {"supar": "SμPar", "mup": "μP", "sp": "SP"}


@dataclass(frozen=True)
class Row:
    """One cell beside the base whose learning rate it is to use.

    Attributes:
        label: Its parameterization, as tables and plots call it.
        density: As asked for.
        curve: Of the cell.
        base: Curve of its dense base.
    """

    label: str
    density: float
    curve: Curve
    base: Curve

    @property
    def shift(self) -> int:
        """log2 of best rate over best rate of the base."""
        return self.curve.best - self.base.best

    def to_json(self) -> dict[str, Any]:
        """The row, with its loss at the base's best rate."""
        point = self.curve.points.get(self.base.best)
        return {
            "label": self.label,
            "cell": asdict(self.curve.cell),
            "shift": self.shift,
            "transferred": None if point is None else {"mean": point.mean, "std": point.spread},
            **self.curve.to_json(),
        }


def rows(cells: Sequence[tuple[str, Cell, Cell]], ledger: Runs) -> list[Row]:
    """Rows of (label, cell, base) that have runs."""
    found = []
    for label, cell, base in cells:
        curve, own = Curve.of(cell, ledger), Curve.of(base, ledger)
        if curve.points and own.points:
            found.append(Row(label, cell.density, curve, own))
    return found


def collect(size: Size, ledger: Runs) -> tuple[Bases | None, dict[str, list[Row]]]:
    """All rows, by part."""
    bases, _ = tuned(size, ledger)
    found: dict[str, list[Row]] = {}
    if bases is not None:
        own = {kind: bases.of(kind) for kind in NAMES}
        cells = [(NAMES[kind], own[kind], own[kind]) for kind in NAMES]
        cells += [(_name(c), c, own[c.parameterization]) for c in grid_cells(size, bases)]
        found["grid"] = rows(cells, ledger)
        own = {kind: replace(base, width=size.narrow) for kind, base in own.items()}
        cells = [(NAMES[kind], own[kind], own[kind]) for kind in NAMES]
        cells += [(_name(c), c, own[c.parameterization]) for c in wide_cells(size, bases)]
        found["wide"] = rows(cells, ledger)
        own = longer_bases(size, bases)
        cells = [(NAMES[kind], base, base) for kind, base in own.items()]
        cells += [(_name(c), c, own[c.parameterization]) for c in longer_cells(size, bases)]
        found["longer"] = rows(cells, ledger)
        found["transfer"] = rows(_transfer_cells(size, ledger), ledger)
        found["rigl"] = rows(_rigl_cells(size, bases, ledger), ledger)
    base = cnn_base(size)
    cells = [("dense", base, base)] + [(_cnn_name(cell), cell, base) for cell in cnn_cells(size)]
    found["cnn"] = rows(cells, ledger)
    return bases, found


def _transfer_cells(size: Size, ledger: Runs) -> list[tuple[str, Cell, Cell]]:
    small, _ = proxies(size, ledger)
    if small is None:
        return []
    own = {kind: small.of(kind) for kind in NAMES}
    cells = [(NAMES[kind], base, base) for kind, base in own.items()]
    return cells + [(_name(c), c, own[c.parameterization]) for c in transfer_cells(size, small)]


def _rigl_cells(size: Size, bases: Bases, ledger: Runs) -> list[tuple[str, Cell, Cell]]:
    measured = any(cell.method == "rigl" and cell.parameterization == "mup" for cell in _cells(ledger))
    complete = measured and all(
        Curve.of(cell, ledger).points for cell in rigl_cells(size, bases) if cell.parameterization == "mup"
    )
    gammas = (1.0, 0.5, *((fitted_gamma(size, bases, ledger),) if complete else ()))
    cells = dict.fromkeys(rigl_cells(size, bases, gammas))
    return [(_gamma_name(cell), cell, bases.mup) for cell in cells]


def _cells(ledger: Runs) -> set[Cell]:
    return {run.cell for run, _ in ledger.items()}


def _name(cell: Cell) -> str:
    return NAMES[cell.parameterization]


def _gamma_name(cell: Cell) -> str:
    return "μP (γ 0)" if cell.parameterization == "mup" else f"SμPar γ {cell.gamma:g}"


def _cnn_name(cell: Cell) -> str:
    if cell.parameterization == "sp":
        return "SP"
    return "SμPar, rates corrected" if cell.rate_behind_norm else "SμPar, init only"


def write(size: Size, ledger: Runs, folder: Path, document: Path | None) -> dict[str, Any]:
    """Writes the plots, and refreshes the tables of a document.

    Args:
        size: Of the study.
        ledger: Its runs.
        folder: Where to write.
        document: Markdown with places for the tables.

    Returns:
        What the summary says.
    """
    bases, found = collect(size, ledger)
    for name, rows_ in found.items():
        if rows_:
            plots.rates(rows_, folder / f"{name}_rates.png")
            plots.optima(rows_, folder / f"{name}_optima.png")
    if document is not None:
        refresh(document, contents(size, ledger, found, folder.name))
    return {
        "text": corpus().digest,
        "cpu_minutes": round(sum(_spent(result) for _, result in ledger.items()) / 60, 1),
        "bases": None if bases is None else {"mup": asdict(bases.mup), "sp": asdict(bases.sp)},
        "largest_shift": {name: _largest_shifts(rows_) for name, rows_ in found.items()},
        **{name: [row.to_json() for row in rows_] for name, rows_ in found.items()},
    }


def contents(size: Size, ledger: Runs, found: Mapping[str, Sequence[Row]], folder: str) -> dict[str, str]:
    """The tables of the document, by their places; the plots that they are shown with lie in `folder`."""
    written = {name: _section(name, found.get(name, []), folder) for name in PARTS[1:]}
    return written | {
        "grid losses": tables.losses(found.get("grid", [])),
        "tune": tables.tuning(size, ledger),
    }


def _spent(result: Mapping[str, Any]) -> float:
    """Seconds of processor time; of the clock, which is about the same, where the run recorded no other."""
    return float(result.get("cpu_seconds", result["seconds"]))


def _largest_shifts(found: list[Row]) -> dict[str, int]:
    """The shift farthest from 0 by label, in factors of 2; curves whose best is at an end are left out."""
    shifts: dict[str, int] = {}
    for row in (row for row in found if row.curve.bracketed and row.base.bracketed):
        shifts[row.label] = max(shifts.get(row.label, 0), row.shift, key=abs)
    return shifts


def _section(name: str, found: Sequence[Row], folder: str) -> str:
    if not found:
        return NOT_RUN
    return f"{tables.cells(found)}\n\n![loss against learning rate]({folder}/{name}_rates.png)"
