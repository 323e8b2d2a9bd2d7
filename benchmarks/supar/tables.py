"""The tables of the study, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from curves import Curve
from ledger import Ledger
from parts import Size
from plots import fraction

if TYPE_CHECKING:
    from report import Row


def cells(rows: Sequence[Row]) -> str:
    """A line for each cell: its best rate, and how far that is from its base's."""
    lines = [
        "| density | | best LR | parabola | shift | loss there | loss at the base's LR | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row.density):
        curve = row.curve
        edge = "" if curve.bracketed else " (curve not finished)"
        best, given = curve.points[curve.best], curve.points.get(row.base.best)
        lines.append(
            f"| {fraction(row.density)} | {row.label} | 2^{curve.best}{edge} | 2^{curve.optimum:.1f} "
            f"| {row.shift:+d} | {best} | {given or 'not run'} | {best.seeds} |"
        )
    return "\n".join(lines)


def losses(rows: Sequence[Row]) -> str:
    """A line for each density: loss at the base's rate and at the cell's own best, by parameterization."""
    labels = list(dict.fromkeys(row.label for row in rows))
    head = " | ".join(f"{label}, base's LR | {label}, own best" for label in labels)
    lines = [f"| density | {head} |", "|---" * (1 + 2 * len(labels)) + "|"]
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
        lines.append(f"| {' | '.join(entries)} |")
    return "\n".join(lines)


def tuning(size: Size, ledger: Ledger) -> str:
    """A line for each dense GPT that was tried, the best first."""
    tried = {
        run.cell
        for run, _ in ledger.items()
        if run.cell.model == "gpt" and run.cell.density == 1.0 and run.cell.width == size.width
    }
    lines = ["| σ | α_in | α_out | best LR | loss there |", "|---|---|---|---|---|"]
    curves = [curve for cell in tried if (curve := Curve.of(cell, ledger)).points]
    for curve in sorted(curves, key=lambda curve: curve.points[curve.best].mean):
        cell = curve.cell
        lines.append(
            f"| {cell.sigma:g} | {cell.alpha_in:g} | {cell.alpha_out:g} | 2^{curve.best} "
            f"| {curve.points[curve.best]} |"
        )
    return "\n".join(lines)
