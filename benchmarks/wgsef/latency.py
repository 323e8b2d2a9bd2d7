"""Times a narrowed model beside the dense one in ONNX Runtime, in alternating blocks, on one thread."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import sparsify
from benchmarks.study.models import IMAGE
from benchmarks.wgsef.models import build
from benchmarks.wgsef.runs import Run
from sparsify import dst, runtime

BATCHES = (1, 64)


def time(run: Run, seconds: float) -> dict[str, Any]:
    """Latencies and speedups by batch size.

    Times do not depend on weights, so the model is made anew and loses as many filters of every width as the
    trained one did.

    Args:
        run: With `removed`.
        seconds: For each model and batch size.

    Returns:
        `dense_ms`, `narrow_ms` (medians) and `speedup` by batch size, the sizes of both files in bytes,
        parameters and FLOPs before and after.
    """
    model = build(replace(run, removed=())).eval()
    sets = dst.find_groups(model, "filters", example=IMAGE).sets
    units = {one.id: list(range(count)) for one, count in zip(sets, run.removed, strict=True) if count}
    small = sparsify.narrow(model, (IMAGE,), units=units)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "narrow")}
        sparsify.export(model, files["dense"], args=(IMAGE,), dense=True)
        sparsify.export(small, files["narrow"], dense=True)
        found = runtime.bench(
            files["narrow"], baseline=files["dense"], batches=BATCHES, threads=(1,), duration=seconds
        )
        sizes = {name: file.stat().st_size for name, file in files.items()}
    rows = {(row["model"], row["batch"]): row for row in found["results"]}
    return {
        "dense_ms": {str(batch): rows["baseline", batch]["latency_ms"]["p50"] for batch in BATCHES},
        "narrow_ms": {str(batch): rows["model", batch]["latency_ms"]["p50"] for batch in BATCHES},
        "speedup": {str(batch): rows["model", batch]["speedup"] for batch in BATCHES},
        "bytes": sizes,
        "parameters": list(small.meta["narrowing"].parameters),
        "flops": list(small.meta["narrowing"].flops),
    }
