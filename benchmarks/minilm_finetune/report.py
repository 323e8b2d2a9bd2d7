"""The table of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.minilm_finetune.runs import SPARSE, Grid, Run
from benchmarks.study.document import refresh, table
from benchmarks.study.ledger import Ledger
from benchmarks.study.plots import bars
from benchmarks.study.samples import Sample

HEAD = ("model", "density", "accuracy %", "with the dense teacher", "ONNX MB", "ms, batch 1", "ms, batch 8")


def write(ledger: Ledger[Run], grid: Grid, folder: Path, document: Path | None) -> dict[str, Any]:
    """Plot, table and numbers.

    Args:
        ledger: Finished runs.
        grid: What is compared.
        folder: For the plot.
        document: With the marked place for the table; None for no document.

    Returns:
        What goes into summary.json.
    """
    times = next((dict(r["latency"]) for run, r in ledger.items() if run.method == "latency"), {})
    rows: list[Sequence[str]] = []
    numbers: dict[str, Any] = {}
    dense = grid.dense
    baseline = Sample.of(ledger, dense, "accuracy")
    gaps: dict[str, dict[str, Sample]] = {}
    for run in kinds(grid):
        plain = Sample.of(ledger, run, "accuracy")
        taught = Sample.of(ledger, replace(run, distilled=True), "accuracy")
        rows.append(_row(run, plain, taught, times))
        numbers[run.name] = {"accuracy": plain.to_json(), "distilled": taught.to_json()}
        if run != dense:
            label = f"{run.method} {100 * run.density:g} %"
            gaps[label] = {"alone": plain.minus(baseline), "with teacher": taught.minus(baseline)}
    bars(gaps, folder / "accuracy.png", measure="accuracy points", zero="the dense model of the same seed")
    if document is not None:
        refresh(document, {"minilm": table(HEAD, rows)})
    return {"models": numbers, "latency": times}


def kinds(grid: Grid) -> list[Run]:
    """One run for every line of the table, seed 0, without teacher, by density."""
    found = [
        run for part in ("dense", "one-shot", "tune", "wide") for run in grid.runs(part) if run.seed == 0
    ]
    return sorted(found, key=lambda run: -run.density)


def _row(run: Run, plain: Sample, taught: Sample, times: Mapping[str, Any]) -> Sequence[str]:
    label = {"dense": "dense", "one-shot": "one-shot magnitude"} | SPARSE
    found = times.get(run.name, {})
    size = f"{found['bytes'] / 1e6:.1f}" if found else "–"
    cells = [_latency(found.get("latency_ms", {}).get(batch)) for batch in ("1", "8")]
    return (label[run.method], f"{100 * run.density:g} %", plain.text(), taught.text(), size, *cells)


def _latency(cell: Mapping[str, float] | None) -> str:
    if cell is None:
        return "–"
    return f"{cell['sparse']:.1f} (dense {cell['dense']:.1f}, {cell['dense'] / cell['sparse']:.2f}×)"
