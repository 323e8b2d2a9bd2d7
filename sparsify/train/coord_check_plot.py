"""The plot of a coordinate check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.train.coord_check_slopes import Values

_TITLES = {"supar": "SμPar", "mup": "μP", "sp": "SP"}


def plot_check(
    x: Sequence[float],
    activations: Mapping[str, Mapping[str, Values]],
    path: Path,
    *,
    mode: str,
    slopes: Mapping[str, Mapping[str, float | None]],
    settings: Mapping[str, Any],
) -> None:
    """Draws mean |activation| over density or width, log-log, as a PNG.

    One column for each parameterization, one row for the step before training, the middle and the last one;
    one line for each layer (geometric mean over the seeds).

    Args:
        x: One density or width for each point.
        activations: Parameterization to layer to [point][seed][step].
        path: File to write.
        mode: `density`, `width` or `isoflop`.
        slopes: Parameterization to layer to slope at the last step, for the titles.
        settings: Steps, learning rate, optimizer, data, for the title.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    steps = sorted({0, settings["steps"] // 2, settings["steps"]})
    figure = Figure(figsize=(3.8 * len(activations), 2.6 * len(steps) + 0.6), layout="constrained")
    axes = figure.subplots(len(steps), len(activations), sharex=True, sharey=True, squeeze=False)
    for column, (name, layers) in enumerate(activations.items()):
        colours = colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
        for row, step in enumerate(steps):
            panel = axes[row][column]
            for colour, (layer, values) in zip(colours, layers.items(), strict=True):
                panel.plot(x, _means(values, step), color=colour, marker=".", linewidth=1, label=layer)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel(f"step {step}\nmean |activation|")
        found = [abs(slope) for slope in slopes[name].values() if slope is not None]
        worst = f"largest |slope| {max(found):.2f}" if found else "not finite"
        axes[0][column].set_title(f"{_TITLES.get(name, name)}: {worst}", fontsize=10)
        axes[-1][column].set_xlabel("width" if mode == "width" else "density")
    if mode != "width":
        axes[0][0].invert_xaxis()
    rules = ", ".join(settings["rules"]) or "none"
    figure.suptitle(
        f"coordinate check ({mode}): {settings['optimizer']}, lr {settings['lr']:.4g}, rules {rules}, "
        f"{settings['data']}; dark: first layers",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)


def _means(values: Values, step: int) -> Any:
    table = np.array([[seed[step] for seed in seeds] for seeds in values], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.exp(np.log(table).mean(axis=1))
