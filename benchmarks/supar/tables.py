"""The tables of the study, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.study.document import table
from benchmarks.supar.curves import Curve
from benchmarks.supar.parts import Size
from benchmarks.supar.plots import fraction
from benchmarks.supar.runs import Runs

if TYPE_CHECKING:
    from benchmarks.supar.report import Row


def cells(rows: Sequence[Row]) -> str:
    """A line for each cell: its best rate, and how far that is from its base's."""
    head = ["density", "", "best LR", "parabola", "shift", "loss there", "loss at the base's LR", "seeds"]
    lines = []
    for row in sorted(rows, key=lambda row: -row.density):
        curve = row.curve
        edge = "" if curve.bracketed else " (curve not finished)"
        best, given = curve.points[curve.best], curve.points.get(row.base.best)
        rates = [f"2^{curve.best}{edge}", f"2^{curve.optimum:.1f}", f"{row.shift:+d}"]
        measured = [str(best), str(given or "not run"), str(best.seeds)]
        lines.append([fraction(row.density), row.label, *rates, *measured])
    return table(head, lines)


def losses(rows: Sequence[Row]) -> str:
    """A line for each density: loss at the base's rate and at the cell's own best, by parameterization."""
    labels = list(dict.fromkeys(row.label for row in rows))
    head = [text for label in labels for text in (f"{label}, base's LR", f"{label}, own best")]
    lines = []
    found = {(row.density, row.label): row for row in rows}
    for density in sorted({row.density for row in rows}, reverse=True):
        entries = [fraction(density)]
        for label in labels:
            row = found.get((density, label))
            if row is None:
                entries += ["", ""]
                continue
            given = row.curve.points.get(row.base.best)
            best = str(row.curve.points[row.curve.best]) if row.curve.bracketed else ""
            entries += [str(given or ""), best]
        lines.append(entries)
    return table(["density", *head], lines)


def tuning(size: Size, ledger: Runs) -> str:
    """A line for each dense GPT that was tried, the best first."""
    tried = {
        run.cell
        for run, _ in ledger.items()
        if run.cell.model == "gpt" and run.cell.density == 1.0 and run.cell.width == size.width
    }
    lines = []
    curves = [curve for cell in tried if (curve := Curve.of(cell, ledger)).points]
    for curve in sorted(curves, key=lambda curve: curve.points[curve.best].mean):
        cell = curve.cell
        settings = [f"{cell.sigma:g}", f"{cell.alpha_in:g}", f"{cell.alpha_out:g}"]
        lines.append([*settings, f"2^{curve.best}", str(curve.points[curve.best])])
    return table(["σ", "α_in", "α_out", "best LR", "loss there"], lines)
