"""The plot of a coordinate check."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsify.train.coord_check_slopes import FLAT, Values

_TITLES = {"supar": "SμPar", "mup": "μP", "sp": "SP"}
_MODES = {
    "density": "densities at the given widths",
    "width": "widths at one density",
    "isoflop": "densities, as wide as the FLOPs allow",
}
_COLUMNS, _MOST = 4, 28


def plot_check(
    points: Sequence[Mapping[str, float]],
    activations: Mapping[str, Mapping[str, Values]],
    path: Path,
    *,
    mode: str,
    slopes: Mapping[str, Mapping[str, float | None]],
    settings: Mapping[str, Any],
) -> None:
    """Draws mean |activation| over density or width, log-log, as a PNG.

    One column for each parameterization, one row for the step before training, the middle and the last one;
    one line for each layer (geometric mean over the seeds), named below where there are not too many.

    Args:
        points: `density` and `width` of each variant.
        activations: Parameterization to layer to [point][seed][step].
        path: File to write.
        mode: `density`, `width` or `isoflop`.
        slopes: Parameterization to layer to slope at the last step, for the titles.
        settings: Steps, seeds, learning rate, optimizer, rules, data, for the title.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    steps = sorted({0, settings["steps"] // 2, settings["steps"]})
    layers = list(next(iter(activations.values())))
    named = len(layers) <= _MOST
    rows = math.ceil(len(layers) / _COLUMNS) if named else 1
    columns = max(len(activations), 2)
    figure = Figure(figsize=(3.8 * columns, 2.5 * len(steps) + 0.7 + 0.2 * rows), layout="constrained")
    axes = figure.subplots(len(steps), len(activations), sharex=True, sharey=True, squeeze=False)
    colours = colormaps["turbo"](np.linspace(0.05, 0.95, len(layers)))
    x = [point["width" if mode == "width" else "density"] for point in points]
    for column, (name, by_layer) in enumerate(activations.items()):
        for row, step in enumerate(steps):
            panel = axes[row][column]
            for number, (values, colour) in enumerate(zip(by_layer.values(), colours, strict=True)):
                style = {"color": colour, "linestyle": "-" if number % 2 else "--"}
                panel.plot(x, _means(values, step), marker=".", linewidth=1.2, **style)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel(f"step {step}\nmean |activation|")
        found = [None if slope is None else abs(slope) for slope in slopes[name].values()]
        axes[0][column].set_title(
            f"{_TITLES.get(name, name)}\n{_worst(found, settings['steps'])}", fontsize=10
        )
        axes[-1][column].set_xlabel({"width": "width factor"}.get(mode, "density"))
    _ticks(axes[-1][0], points, mode)
    figure.suptitle(_title(mode, settings), fontsize=10)
    if named:
        figure.legend(
            axes[0][0].get_lines(),
            _shortened(layers),
            loc="outside lower center",
            ncols=_COLUMNS,
            fontsize=8,
        )
    else:
        figure.supxlabel(f"{len(layers)} layers, from the first (blue) to the last (red)", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, dpi=100, format="png")
    temporary.replace(path)


def _ticks(panel: Any, points: Sequence[Mapping[str, float]], mode: str) -> None:
    """Names the points on the x axis, which all panels share; falling density goes to the right."""
    key = "width" if mode == "width" else "density"
    panel.set_xscale("log", base=2)
    labels = [f"{point[key]:.3g}" for point in points]
    if mode == "isoflop":
        labels = [f"{label}\n×{point['width']:.3g}" for label, point in zip(labels, points, strict=True)]
    panel.set_xticks([point[key] for point in points], labels)
    panel.minorticks_off()
    if mode != "width":
        panel.invert_xaxis()


def _worst(slopes: Sequence[float | None], step: int) -> str:
    if not all(slope is not None and math.isfinite(slope) for slope in slopes):
        return f"not finite at step {step}"
    largest = max(slope for slope in slopes if slope is not None)
    return f"|slope| at step {step}: {'all ≤' if largest <= FLAT else 'up to'} {largest:.2f}"


def _title(mode: str, settings: Mapping[str, Any]) -> str:
    exponent = math.log2(settings["lr"])
    lr = f"2^{exponent:g}" if exponent == round(exponent) else f"{settings['lr']:.4g}"
    rules = ", ".join(settings["rules"]) or "none"
    return (
        f"Coordinate check: {_MODES[mode]}\n{settings['optimizer']}, lr {lr}, rules in force: {rules}, "
        f"{settings['seeds']} seeds, {settings['data']}"
    )


def _shortened(layers: Sequence[str]) -> list[str]:
    """Names without the path that all of them begin with."""
    paths = [name.split(".") for name in layers]
    same = 0
    while all(len(path) > same + 1 and path[same] == paths[0][same] for path in paths):
        same += 1
    return [".".join(path[same:]) for path in paths]


def _means(values: Values, step: int) -> Any:
    table = np.array([[seed[step] for seed in seeds] for seeds in values], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.exp(np.log(table).mean(axis=1))
