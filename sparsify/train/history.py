"""The record of a run: rows in memory, a CSV file that grows with them, and a plot."""

from __future__ import annotations

import csv
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
    """Draws losses, the metric, and the learning rate with the density over steps, as a PNG.

    Args:
        rows: Rows with `step`, `loss`, `lr`, `density`, and now and then `test_loss` and `test_<metric>`.
        path: The file to write.
        title: Title of the figure.
        metric: Name of the metric, without `test_`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplot_mosaic([["loss", "metric"], ["lr", "metric"]])
    top, right, bottom = panels["loss"], panels["metric"], panels["lr"]
    for axes, column, label in (
        (top, "loss", "training"),
        (top, "test_loss", "test"),
        (right, f"test_{metric}", metric.replace("_", " ")),
        (bottom, "lr", "learning rate"),
        (bottom, "density", "density"),
    ):
        points = [(row["step"], row[column]) for row in rows if row.get(column) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), label=label, marker="o" if column.startswith("test") else None
            )
    for axes, name in ((top, "loss"), (right, metric.replace("_", " ")), (bottom, "learning rate, density")):
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend()
    bottom.set_yscale("log")
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
