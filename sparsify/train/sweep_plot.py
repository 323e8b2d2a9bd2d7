"""The plot of a sweep: loss over learning rate, one panel for each parameterization and width."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsify.train.sweep_best import Curve

_TITLES = {"supar": "SμPar", "mup": "μP", "sp": "SP"}


def plot_sweep(found: Sequence[Curve], path: Path, *, title: str) -> None:
    """Draws the curves with their spread, the best rate of each marked, as a PNG.

    Args:
        found: The curves.
        path: File to write; appears whole or not at all.
        title: Title of the figure.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys(curve.parameterization for curve in found))
    rows = list(dict.fromkeys(curve.width for curve in found))
    densities = sorted({curve.density for curve in found}, reverse=True)
    colours = dict(zip(densities, colormaps["viridis"](np.linspace(0, 0.9, len(densities))), strict=True))
    figure = Figure(figsize=(3.9 * len(columns), 3.2 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for curve in found:
        panel = axes[rows.index(curve.width)][columns.index(curve.parameterization)]
        losses = np.array([np.nan if loss is None else loss for loss in curve.losses])
        spreads = [0.0 if spread is None else spread for spread in curve.spreads]
        colour = colours[curve.density]
        label = f"density {curve.density:.4g}"
        panel.errorbar(curve.lrs, losses, spreads, color=colour, marker=".", linewidth=1, label=label)
        if curve.lr is not None:
            panel.plot([curve.lr], [curve.loss], color=colour, marker="*", markersize=12)
    for row, width in enumerate(rows):
        where = (
            "" if width is None else f", width {width}" if isinstance(width, str) else f", width {width:g}"
        )
        for column, name in enumerate(columns):
            axes[row][column].set_title(_TITLES.get(name, name) + where, fontsize=10)
            axes[row][column].grid(alpha=0.3)
        axes[row][0].set_ylabel("test loss")
    for panel in axes[-1]:
        panel.set_xscale("log", base=2)
        panel.set_xlabel("base learning rate")
    axes[0][-1].legend(fontsize=8, loc="upper right")
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)
