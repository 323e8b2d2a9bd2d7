"""Size and latency of the written models after export, beside the dense model, in alternating blocks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import sparsify
from benchmarks.minilm_finetune.runs import Run
from sparsify import runtime

REPEATS = 3


def measure(runs: list[Run], dense: Run, folder: Path, *, duration: float) -> dict[str, Any]:
    """Times every model of `runs` that was written.

    Returns:
        By name: bytes of the ONNX file, nodes, and by batch size the medians over the repeats in
        milliseconds for it and for the dense model in the same run. Where nothing was lowered, the file
        holds standard operators only.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        baseline = Path(place) / "dense.onnx"
        report = sparsify.export(sparsify.load(folder / f"{dense.name}.pt2").eval(), baseline, dense=True)
        found[dense.name] = {"bytes": report.bytes}
        for run in runs:
            archive = folder / f"{run.name}.pt2"
            if run != dense and archive.exists():
                found[run.name] = _one(archive, baseline, Path(place) / f"{run.name}.onnx", duration)
    return found


def _one(archive: Path, baseline: Path, target: Path, duration: float) -> dict[str, Any]:
    report = sparsify.export(sparsify.load(archive).eval(), target)
    cells: dict[str, list[dict[str, float]]] = {}
    for _ in range(REPEATS):
        timed = runtime.bench(target, baseline=baseline, batches=(1, 8), threads=(1,), duration=duration)
        rows = {(row["model"], row["batch"]): row["latency_ms"]["p50"] for row in timed["results"]}
        for (name, batch), value in rows.items():
            if name == "model":
                cells.setdefault(str(batch), []).append({"sparse": value, "dense": rows["baseline", batch]})
    return {
        "bytes": report.bytes,
        "nodes": report.to_dict()["nodes"],
        "latency_ms": {
            batch: {key: median(cell[key] for cell in all_cells) for key in ("dense", "sparse")}
            for batch, all_cells in cells.items()
        },
    }
