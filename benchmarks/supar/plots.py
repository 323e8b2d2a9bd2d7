"""The plots: loss against learning rate, and what becomes of the optimum as the density falls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.study.plots import MARKERS

if TYPE_CHECKING:
    from benchmarks.supar.report import Row


def rates(rows: Sequence[Row], path: Path) -> None:
    """One panel for each label: loss against learning rate, a line for each density, the best one marked."""
    labels = list(dict.fromkeys(row.label for row in rows))
    densities = sorted({row.density for row in rows}, reverse=True)
    colours = dict(zip(densities, _shades(len(densities)), strict=True))
    figure = Figure(figsize=(1 + 3.3 * len(labels), 3.6), layout="constrained")
    panels = figure.subplots(1, len(labels), sharex=True, sharey=True, squeeze=False)[0]
    for panel, label in zip(panels, labels, strict=True):
        shown = [row for row in rows if row.label == label]
        for row in sorted(shown, key=lambda row: -row.density):
            points, colour = row.curve.points, colours[row.density]
            panel.errorbar(
                list(points),
                [point.mean for point in points.values()],
                [point.spread or 0.0 for point in points.values()],
                color=colour,
                marker=".",
                linewidth=1.2,
                capsize=2,
                label=f"density {fraction(row.density)}",
            )
            panel.plot(row.curve.best, points[row.curve.best].mean, "*", color=colour, markersize=12)
        panel.axvline(shown[0].base.best, color="0.6", linewidth=0.8, linestyle=":")
        panel.set(title=label, xlabel="log₂ learning rate")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    ended = [row for row in rows if row.curve.bracketed] or rows
    lowest = [row.curve.points[row.curve.best].mean for row in ended]
    bottom, top = min(lowest), max(lowest)
    panels[0].set_ylim(bottom - 0.1 * (top - bottom) - 0.01, top + 2 * (top - bottom) + 0.05)
    panels[0].set_ylabel("validation loss (nats)")
    figure.savefig(path, dpi=110)


def optima(rows: Sequence[Row], path: Path) -> None:
    """Best rate against density; loss against density, at the base's rate and at the best one."""
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = list(dict.fromkeys(row.label for row in rows))
    palette = matplotlib.colormaps["tab10"]
    for index, label in enumerate(labels):
        shown = sorted((row for row in rows if row.label == label), key=lambda row: row.density)
        style: dict[str, Any] = {"color": palette(index), "marker": MARKERS[index % len(MARKERS)]}
        ended = [row for row in shown if row.curve.bracketed]
        densities = [row.density for row in ended]
        left.plot(densities, [row.curve.optimum for row in ended], label=label, **style)
        best = [row.curve.points[row.curve.best] for row in ended]
        _losses(right, densities, best, style | {"linestyle": ":", "alpha": 0.6}, f"{label}, own best LR")
        moved = [row for row in shown if row.base.best in row.curve.points]
        given = [row.curve.points[row.base.best] for row in moved]
        _losses(right, [row.density for row in moved], given, style, f"{label}, the base's LR")
    ticks = sorted({row.density for row in rows})
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [fraction(density) for density in ticks])
        panel.minorticks_off()
        panel.invert_xaxis()
        panel.set_xlabel("density")
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    left.set_ylabel("log₂ best learning rate (parabola)")
    right.set_ylabel("validation loss (nats)")
    figure.savefig(path, dpi=110)


def _losses(
    panel: Any, densities: list[float], points: Sequence[Any], style: dict[str, Any], label: str
) -> None:
    means, spreads = [point.mean for point in points], [point.spread or 0.0 for point in points]
    panel.errorbar(densities, means, spreads, capsize=2, linewidth=1.2, label=label, **style)


def fraction(density: float) -> str:
    """A density as 1 or 1/n."""
    return "1" if density == 1 else f"1/{1 / density:g}"


def _shades(count: int) -> list[Any]:
    scale = matplotlib.colormaps["viridis"]
    return [scale(0.9 * index / max(1, count - 1)) for index in range(count)]
