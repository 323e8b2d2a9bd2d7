"""Speedup against sparsity for every batch size, with the line at which sparse breaks even."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.cpu.results import Row
from benchmarks.study.plots import MARKERS


def speedups(ours: Sequence[Row], peers: Sequence[Row], path: Path) -> None:
    """Draws a panel for every number of threads; nothing where there is nothing to draw.

    Args:
        ours: Solid lines, with the range of the rounds as bars.
        peers: Dashed lines of the same colours.
        path: The PNG to write.
    """
    counts = sorted({row.cell.threads for row in ours})
    if not counts:
        return
    figure = Figure(figsize=(1 + 5.4 * len(counts), 4.8), layout="constrained")
    palette = matplotlib.colormaps["viridis"]
    batches = sorted({row.batch for row in ours})
    for panel, threads in zip(figure.subplots(1, len(counts), squeeze=False)[0], counts, strict=True):
        for index, batch in enumerate(batches):
            color = palette(index / max(1, len(batches) - 1) * 0.9)
            line = _line(ours, threads, batch)
            spread = [
                [row.speedup - row.values["range"][0] for row in line],
                [row.values["range"][1] - row.speedup for row in line],
            ]
            panel.errorbar(
                [100 * row.sparsity for row in line],
                [row.speedup for row in line],
                spread,
                label=f"batch {batch}",
                color=color,
                marker=MARKERS[index % len(MARKERS)],
                markersize=4,
                linewidth=1.3,
                capsize=2,
            )
            beside = _line(peers, threads, batch)
            panel.plot(
                [100 * row.sparsity for row in beside],
                [row.speedup for row in beside],
                color=color,
                linestyle="--",
                linewidth=1,
            )
        panel.axhline(1.0, color="0.3", linewidth=1, label="dense: break-even")
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}×")
        layer = ours[0].cell.model.replace("x", "→")
        panel.set(
            title=f"linear {layer}, {threads} thread{'s' if threads > 1 else ''}",
            xlabel="zeros, %",
            ylabel="speedup over dense" + (" (dashed: DeepSparse)" if peers else ""),
        )
        panel.grid(alpha=0.25)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _line(rows: Sequence[Row], threads: int, batch: int) -> list[Row]:
    found = [row for row in rows if row.cell.threads == threads and row.batch == batch]
    return sorted(found, key=lambda row: row.sparsity)
