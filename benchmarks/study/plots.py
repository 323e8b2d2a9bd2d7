"""Plots that studies have in common: lines with error bars, and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.study.samples import Sample

MARKERS = "osD^vPX*"


def lines(
    panels: Mapping[str, Mapping[str, Mapping[float, Sample]]],
    path: Path,
    *,
    across: str,
    measure: str,
    levels: Mapping[str, Sample] | None = None,
) -> None:
    """Means with standard deviations over densities, on a logarithmic scale; one panel for every title.

    A line has the same colour in all panels.

    Args:
        panels: Title → line → density → sample; empty samples are left out.
        path: The PNG to write.
        across: Label of the horizontal axis.
        measure: Label of the vertical one.
        levels: By title, a sample that is drawn as a level across the panel: the dense model.
    """
    figure = Figure(figsize=(1 + 4.6 * len(panels), 4.2), layout="constrained")
    palette = matplotlib.colormaps["tab10"]
    names = list(dict.fromkeys(name for found in panels.values() for name in found))
    for panel, (title, found) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        places = sorted(
            {place for samples in found.values() for place, sample in samples.items() if len(sample)}
        )
        for name, samples in found.items():
            index = names.index(name)
            shown = {place: samples[place] for place in places if len(samples.get(place, Sample({})))}
            if shown:
                panel.errorbar(
                    list(shown),
                    [sample.mean for sample in shown.values()],
                    [sample.std or 0.0 for sample in shown.values()],
                    label=name,
                    color=palette(index % 10),
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=4,
                    linewidth=1.2,
                    capsize=2,
                )
        level = (levels or {}).get(title)
        if level:
            panel.axhline(level.mean, color="0.4", linestyle="--", linewidth=1, label="dense")
        panel.set_xscale("log")
        panel.set_xticks(places, [f"{100 * place:g} %" for place in places])
        panel.minorticks_off()
        panel.set(title=title, xlabel=across, ylabel=measure)
        panel.grid(alpha=0.25)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def bars(groups: Mapping[str, Mapping[str, Sample]], path: Path, *, measure: str, zero: str) -> None:
    """Horizontal bars with standard deviations and the single seeds as dots; a colour for every legend entry.

    Args:
        groups: Row → legend entry → sample; empty samples are left out.
        path: The PNG to write.
        measure: Label of the axis.
        zero: What the line at 0 stands for.
    """
    entries: Sequence[str] = list(dict.fromkeys(entry for found in groups.values() for entry in found))
    palette = matplotlib.colormaps["tab10"]
    figure = Figure(figsize=(8, 1.4 + 0.22 * len(groups) * max(1, len(entries))), layout="constrained")
    panel = figure.subplots()
    height = 0.8 / max(1, len(entries))
    for index, entry in enumerate(entries):
        shown = [
            (row, found[entry]) for row, found in enumerate(groups.values()) if len(found.get(entry, ()))
        ]
        places = [row - 0.4 + (index + 0.5) * height for row, _ in shown]
        panel.barh(
            places,
            [sample.mean for _, sample in shown],
            height,
            xerr=[sample.std or 0.0 for _, sample in shown],
            color=palette(index % 10),
            alpha=0.75,
            label=entry,
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        for place, (_, sample) in zip(places, shown, strict=True):
            panel.plot(list(sample.values.values()), [place] * len(sample), "k.", markersize=3)
    panel.axvline(0.0, color="0.3", linewidth=1)
    panel.set_yticks(range(len(groups)), list(groups))
    panel.invert_yaxis()
    panel.set(xlabel=f"{measure}; 0 is {zero}")
    panel.grid(alpha=0.25, axis="x")
    if entries:
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
