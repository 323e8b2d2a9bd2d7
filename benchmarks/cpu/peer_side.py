#!/usr/bin/env python3
"""Times one ONNX file in ONNX Runtime and in DeepSparse, in alternating blocks of one process.

    PYTHON peer_side.py FILE.onnx --batch 1,64 --threads 2 --seconds 2

Run with the Python of an environment that has deepsparse; it imports nothing of this project. The file's
first dimension is the batch. One JSON object on standard output: results[{batch, ort_ms, deepsparse_ms,
speedup, range, relative_error}].
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

os.environ["NM_DISABLE_ANALYTICS"] = "1"

import numpy as np
import onnx
import onnxruntime
from deepsparse import Engine

ROUNDS = 3
TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def with_batch(source: str, batch: int, folder: str) -> str:
    """The same file with a fixed first dimension, which the peer wants."""
    model = onnx.load(source)
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.output):
        if value.name not in constants and value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].ClearField("dim_param")
            value.type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    path = Path(folder) / f"batch-{batch}.onnx"
    onnx.save(model, str(path))
    return str(path)


def inputs_of(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Random numbers; for integers small ones, and ones where the name speaks of a mask."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in value.shape]
        if TYPES[value.type] is np.float32:
            found[value.name] = rng.standard_normal(shape).astype(np.float32)
        elif "mask" in value.name:
            found[value.name] = np.ones(shape, np.int64)
        else:
            found[value.name] = rng.integers(0, 100, shape)
    return found


def block(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of single calls, after a pause and one call that is not counted."""
    time.sleep(0.05)
    call()
    found: list[float] = []
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def compare(calls: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Median seconds of every call, round by round; a round has three blocks of each."""
    rounds = []
    for _ in range(ROUNDS):
        samples: list[list[float]] = [[] for _ in calls]
        for turn in range(3):
            order = list(zip(calls, samples, strict=True))
            for call, found in reversed(order) if turn % 2 else order:
                found += block(call, seconds / ROUNDS / 3)
        rounds.append([median(found) for found in samples])
    return rounds


def measure(path: str, batch: int, threads: int, seconds: float) -> dict[str, object]:
    """Both engines on one batch size."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = inputs_of(session)
    engine = Engine(path, batch_size=batch, num_cores=threads)
    inputs = list(feeds.values())
    want, got = session.run(None, feeds)[0], engine.run(inputs)[0]
    rounds = compare((lambda: session.run(None, feeds), lambda: engine.run(inputs, val_inp=False)), seconds)
    ratios = [ort / other for ort, other in rounds]
    return {
        "batch": batch,
        "ort_ms": 1e3 * median(ort for ort, _ in rounds),
        "deepsparse_ms": 1e3 * median(other for _, other in rounds),
        "speedup": median(ratios),
        "range": [min(ratios), max(ratios)],
        "relative_error": float(np.abs(want - got).max() / max(float(np.abs(want).max()), 1e-30)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each engine and batch size")
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for batch in map(int, args.batch.split(",")):
            path = with_batch(args.model, batch, folder)
            results.append(measure(path, batch, args.threads, args.seconds))
            print(results[-1], file=sys.stderr, flush=True)
    json.dump({"results": results}, sys.stdout)


if __name__ == "__main__":
    main()
