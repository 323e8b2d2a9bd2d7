"""Times a narrowed model beside the dense one in ONNX Runtime, in alternating blocks, on one thread."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import sparsify
from benchmarks.study.models import IMAGE
from benchmarks.wgsef.models import build
from benchmarks.wgsef.runs import Run
from sparsify import dst, runtime

BATCHES = (1, 64)
MULTIPLE = 16
"""Channels of a block of ONNX Runtime's convolutions on AVX-512."""


def time(run: Run, seconds: float) -> dict[str, Any]:
    """Latencies and speedups by batch size, narrowed as far as possible and to multiples of a block.

    Times do not depend on weights, so the model is made anew and loses as many filters of every width as the
    trained one did.

    Args:
        run: With `removed`.
        seconds: For each model and batch size.

    Returns:
        For `exact` and `blocks`: `dense_ms`, `narrow_ms` (medians) and `speedup` by batch size, bytes of both
        files, parameters and FLOPs before and after.
    """
    model = build(replace(run, removed=())).eval()
    sets = dst.find_groups(model, "filters", example=IMAGE).sets
    units = {one.id: list(range(count)) for one, count in zip(sets, run.removed, strict=True) if count}
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.onnx"
        sparsify.export(model, dense, args=(IMAGE,), dense=True)
        return {
            name: _timed(sparsify.narrow(model, (IMAGE,), units=units, multiple_of=multiple), dense, seconds)
            for name, multiple in (("exact", 1), ("blocks", MULTIPLE))
        }


def _timed(small: nn.Module, dense: Path, seconds: float) -> dict[str, Any]:
    file = dense.with_name("narrow.onnx")
    sparsify.export(small, file, dense=True)
    found = runtime.bench(file, baseline=dense, batches=BATCHES, threads=(1,), duration=seconds)
    rows = {(row["model"], row["batch"]): row for row in found["results"]}
    return {
        "dense_ms": {str(batch): rows["baseline", batch]["latency_ms"]["p50"] for batch in BATCHES},
        "narrow_ms": {str(batch): rows["model", batch]["latency_ms"]["p50"] for batch in BATCHES},
        "speedup": {str(batch): rows["model", batch]["speedup"] for batch in BATCHES},
        "bytes": {"dense": dense.stat().st_size, "narrow": file.stat().st_size},
        "parameters": list(small.meta["narrowing"].parameters),
        "flops": list(small.meta["narrowing"].flops),
    }
