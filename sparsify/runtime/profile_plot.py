"""Draws where the time goes: the dense model beside the sparse one, by kind of node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsify.errors import UserError

_MOST = 14
_REST = "other"
_NAMES = {
    "Gemm": "linear",
    "MatMul": "linear",
    "FusedGemm": "linear",
    "FusedMatMul": "linear",
    "SparseLinear": "linear",
    "Conv": "conv",
    "FusedConv": "conv",
    "SparseConv": "conv",
    "SparseConvChain": "conv chain",
    "SparseFeedForward": "feed-forward",
}


def by_kind(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Microseconds a call by kind of node: its operator and the shape of its matrix.

    Args:
        rows: An annotated profile.
    """
    sums: dict[str, float] = {}
    for row in rows:
        kind = _NAMES.get(row["op"], row["op"])
        if row["shape"] is not None:
            kind += " " + "×".join(map(str, row["shape"]))
        sums[kind] = sums.get(kind, 0.0) + row["us"]
    return sums


def save_profile_plot(report: Mapping[str, Any], path: str | Path) -> None:
    """Draws the profile of a bench report as pairs of bars.

    Args:
        report: What `bench` returned, with `profile`.
        path: File to write; its suffix says the format, such as .png or .svg.

    Raises:
        UserError: The report has no profile, matplotlib is missing, or the format is unknown.
    """
    if "profile" not in report:
        raise UserError("the report has no profile to draw: run bench with profile=True")
    sides = {"dense": report.get("baseline_profile"), "sparse": report["profile"]}
    times = {name: by_kind(rows) for name, rows in sides.items() if rows}
    kinds = sorted(
        {kind for side in times.values() for kind in side}, key=lambda kind: -_largest(times, kind)
    )
    shown = kinds if len(kinds) <= _MOST else [*kinds[: _MOST - 1], _REST]
    for side in times.values():
        side[_REST] = sum(side.get(kind, 0.0) for kind in kinds if kind not in shown)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("drawing needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(times)
    for index, (name, side) in enumerate(times.items()):
        places = [row + (index - (len(times) - 1) / 2) * height for row in range(len(shown))]
        total = sum(side.get(kind, 0.0) for kind in shown) / 1e3
        values = [side.get(kind, 0.0) / 1e3 for kind in shown]
        axes.barh(places, values, height, label=f"{name}: {total:.2f} ms in nodes")
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlabel("ms a call")
    axes.legend()
    try:
        figure.savefig(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _largest(times: Mapping[str, Mapping[str, float]], kind: str) -> float:
    return max(side.get(kind, 0.0) for side in times.values())
