"""The record of a run: rows in memory, a CSV file that grows with them, and a plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


class History:
    """Rows of a run, mirrored to a CSV file.

    Args:
        path: The CSV file, or None to keep rows in memory only.
        columns: Names of all columns.
        rows: Rows of the interrupted run that this one goes on with; later rows in the file are dropped.
    """

    def __init__(self, path: Path | None, columns: Sequence[str], rows: Sequence[Row] = ()) -> None:
        self.path = path
        self.columns = tuple(columns)
        self.rows: list[Row] = list(rows)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(path.name + ".tmp")
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, self.columns)
                writer.writeheader()
                writer.writerows(self.rows)
            temporary.replace(path)

    def add(self, row: Row) -> None:
        """Adds a row, to the file as well."""
        self.rows.append(row)
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)


def plot(rows: Sequence[Row], path: Path, *, title: str, metric: str) -> None:
    """Draws losses, the metric, the learning rate, and density with topology churn over steps, as a PNG.

    Args:
        rows: Rows with `step`, `loss`, `lr`, `density`, `churn`, and now and then `test_loss` and
            `test_<metric>`.
        path: The file to write.
        title: Title of the figure.
        metric: Name of the metric, without `test_`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7))
    name = metric.replace("_", " ")
    panels: dict[str, tuple[tuple[str, str, str], ...]] = {
        "loss": (("loss", "training", "-"), ("test_loss", "test", "o-")),
        name if metric != "loss" else "gradient norm": (
            (f"test_{metric}", "test", "o-") if metric != "loss" else ("gradient_norm", "training", "-"),
        ),
        "learning rate": (("lr", "learning rate", "-"),),
        "density, churn": (("density", "density", "-"), ("churn", "exchanged since the last point", ".-")),
    }
    drawn = figure.subplots(2, 2)
    for axes, (label, curves) in zip(drawn.flat, panels.items(), strict=True):
        found = False
        for column, legend, style in curves:
            points = [(row["step"], row[column]) for row in rows if _drawable(row.get(column))]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=legend, markersize=4)
                found = True
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if found:
            axes.legend(loc="center right")  # "best" is slow with many points, and says so
    drawn[1, 1].set_ylim(-0.02, 1.02)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.07, top=0.93, wspace=0.22, hspace=0.22)
    figure.suptitle(title)
    figure.savefig(path, dpi=100)


def _drawable(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
