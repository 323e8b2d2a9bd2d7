"""Dense int8 in ONNX Runtime: what one would take instead of sparsity."""

from __future__ import annotations

import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from benchmarks.cpu.cells import Cell
from benchmarks.cpu.rounds import compare
from sparsify import runtime
from sparsify.runtime.feeds import make_feeds

_OPERATORS = ["MatMul", "Gemm"]
_CALIBRATION_RUNS = 4


class RandomInputs(CalibrationDataReader):  # type: ignore[misc]
    """A few random samples of a model's inputs, one a call."""

    def __init__(self, path: Path, runs: int = _CALIBRATION_RUNS) -> None:
        model = onnx.load(path, load_external_data=False)
        self._left = [make_feeds(model, 1, seed=seed) for seed in range(runs)]

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """The next sample; None when there is none left."""
        return self._left.pop() if self._left else None


def quantized(dense: Path, engine: str) -> Path:
    """The dense file with linear layers in int8, made once: weights by output, activations by tensor.

    Args:
        dense: The dense network.
        engine: `int8-dynamic`, whose activations are scaled anew at every run, or `int8-static` (QDQ), whose
            scales come from random inputs: good enough for times, not for accuracy.
    """
    path = dense.with_name(f"{dense.stem}-{engine}.onnx")
    if path.exists():
        return path
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(dir=dense.parent) as folder:
        beside = Path(folder) / path.name
        shared: dict[str, Any] = {"op_types_to_quantize": _OPERATORS, "per_channel": True}
        if engine == "int8-dynamic":
            quantize_dynamic(dense, beside, weight_type=QuantType.QInt8, **shared)
        else:
            quantize_static(
                dense,
                beside,
                RandomInputs(dense),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                **shared,
            )
        return beside.replace(path)


def time_int8(cell: Cell, dense: Path, seconds: float) -> list[dict[str, Any]]:
    """One row for every batch size: float32 and int8, both in ONNX Runtime.

    Args:
        cell: Its engine says how it is quantized.
        dense: The dense network.
        seconds: For each side and batch size.
    """
    files = {"dense": dense, "int8": quantized(dense, cell.engine)}
    sessions = {name: runtime.Session(file, threads=cell.threads) for name, file in files.items()}
    rows = []
    for batch in cell.batches:
        feeds = make_feeds(onnx.load(dense, load_external_data=False), batch)
        calls = {name: partial(session.raw.run, None, feeds) for name, session in sessions.items()}
        found = compare(calls, seconds)
        rows.append(
            {"batch": batch, "dense_ms": found["ms"]["dense"], "sparse_ms": found["ms"]["int8"]}
            | {"speedup": found["speedup"]["int8"], "range": found["range"]["int8"]}
            | {"bytes": {name: file.stat().st_size for name, file in files.items()}}
        )
    return rows
