"""Measures sparse kernels beside dense products and fits the cost model of `sparsify lower` to them.

    python -m benchmarks.kernel_costs [-o FOLDER] [--seconds 0.15] [--quick] [--report]

For linear layers and convolutions of several shapes, densities, layouts and batches, on one thread: time
dense and sparse in ONNX Runtime, in alternating blocks. From these come the numbers of an instruction set in
sparsify/lowering/kernel_costs.py: dense rate, and for each layout a rate, the columns at which half of it is
reached, the cost of packing and the cost of a call. They are printed with what the model then says of the
measured layers: error, and the worst decisions. The file holds every measurement; --report fits it again.
Run it on a quiet machine: it takes about five minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from sparsify.lowering.cost import WORTHWHILE, Machine, product_time
from sparsify.lowering.kernel_costs import Kernel, Memory
from sparsify.runtime import layouts
from sparsify.runtime.environment import environment
from sparsify.runtime.layer_bench import bench_layer, parse_conv, parse_linear

LINEAR = ("3072x768", "512x512", "1536x1536")
LINEAR_BATCHES = (1, 4, 16, 128)
LINEAR_PATTERNS = ("unstructured", "2x1", "4x1", "8x1", "16x1")
CONV = (
    "64x64x3x3@56x56",
    "128x128x3x3@28x28",
    "256x256x3x3@14x14",
    "512x512x3x3@7x7",
    "32x32x3x3@8x8",
    "256x64x1x1@56x56",
    "64x256x1x1@56x56",
    "512x128x1x1@28x28",
    "256x1024x1x1@14x14",
    "512x2048x1x1@7x7",
)
CONV_BATCHES = (1, 8)
CONV_PATTERNS = ("unstructured", "2x1", "4x1", "16x1")
DENSITIES = (0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Measured:
    """One layer at one density, layout and batch, times in ns."""

    layer: str
    shape: tuple[int, ...]
    layout: str
    density: float
    columns: int
    entries: int
    dense: float
    sparse: float


def _layers(quick: bool) -> Iterator[tuple[str, bool, Sequence[int], str]]:
    linear, conv = (LINEAR[1:2], CONV[4:5]) if quick else (LINEAR, CONV)
    for layer in linear:
        for pattern in LINEAR_PATTERNS[:: 2 if quick else 1]:
            yield layer, False, LINEAR_BATCHES, pattern
    for layer in conv:
        for pattern in CONV_PATTERNS[:: 2 if quick else 1]:
            yield layer, True, CONV_BATCHES, pattern


def measure(seconds: float, quick: bool) -> Iterator[Measured]:
    """Every measurement, as it is made."""
    for name, is_conv, batches, pattern in _layers(quick):
        layer = parse_conv(name) if is_conv else parse_linear(name)
        chosen: dict[str, Any] = {"conv": name} if is_conv else {"linear": name}
        rows = bench_layer(
            **chosen,
            sparsities=[1 - density for density in DENSITIES],
            pattern=pattern,
            batches=batches,
            seconds=seconds,
        )["results"]
        pixels = math.prod(layer.image or (1,))
        for row in rows:
            density = 1 - row["sparsity"]
            yield Measured(
                name,
                layer.weight,
                row["layout"],
                round(density, 4),
                row["batch"] * pixels,
                round(density * math.prod(layer.weight)),
                1e3 * row["dense_us"],
                1e3 * row["sparse_us"],
            )


def _fit_sparse(rows: Sequence[Measured], memory: Memory) -> tuple[dict[str, Kernel], float]:
    """Kernel of each layout, packing and call shared; root mean square of the logarithm of the error."""
    names = sorted({row.layout for row in rows}, key=layouts.block_rows)

    def kernels(x: np.ndarray[Any, Any]) -> dict[str, Kernel]:
        call, pack, *rest = np.exp(x)
        return {name: Kernel(call, pack, rest[2 * i], rest[2 * i + 1] - 1e-3) for i, name in enumerate(names)}

    def errors(x: np.ndarray[Any, Any]) -> list[float]:
        by_name = kernels(x)
        return [math.log(_sparse(by_name[row.layout], memory, row) / row.sparse) for row in rows]

    start = np.log([4e3, 0.3] + [90.0, 8.0] * len(names))
    bounds = (
        np.log([1e3, 0.05] + [10.0, 1e-3] * len(names)),
        np.log([5e4, 2.0] + [400.0, 60.0] * len(names)),
    )
    found = least_squares(errors, start, bounds=bounds, loss="soft_l1", f_scale=0.2)
    return kernels(found.x), float(np.sqrt(np.mean(np.square(errors(found.x)))))


def _sparse(kernel: Kernel, memory: Memory, row: Measured) -> float:
    rows = layouts.block_rows(row.layout)
    return kernel.call + product_time(kernel, memory, row.shape, row.columns, row.entries, rows)


def _dense(rate: float, row: Measured) -> float:
    return 2.0 * math.prod(row.shape) * row.columns / rate


def report(rows: Sequence[Measured]) -> dict[str, Any]:
    """The fitted numbers and what the model says with them, memory being what the table says of this CPU."""
    memory = Machine.here().costs.memory
    busy = [row for row in rows if row.columns >= 64]
    rate = float(np.median([2.0 * math.prod(row.shape) * row.columns / row.dense for row in busy]))
    said: dict[str, Any] = {"dense": round(rate, 1), "measurements": len(rows)}
    for kind, taken in (
        ("linear", [row for row in rows if len(row.shape) == 2]),
        ("conv", [row for row in rows if len(row.shape) == 4]),
    ):
        kernels, error = _fit_sparse(taken, memory)
        some = next(iter(kernels.values()))
        gains = [
            (
                row.dense / row.sparse,
                max(_dense(rate, row), memory.read(4.0 * math.prod(row.shape)))
                / _sparse(kernels[row.layout], memory, row),
                row,
            )
            for row in taken
        ]
        taken_sparse = [gain for gain in gains if gain[1] >= WORTHWHILE]
        missed = [gain for gain in gains if gain[1] < WORTHWHILE and gain[0] >= WORTHWHILE]
        said[kind] = {
            "call": round(some.call),
            "pack": round(some.pack, 3),
            "rates": {name: [round(k.rate, 1), round(k.half, 1)] for name, k in kernels.items()},
            "error": round(error, 3),
            "made_sparse": len(taken_sparse),
            "slowest_made_sparse": _worst(taken_sparse),
            "left_dense_though_faster": len(missed),
        }
    return said


def _worst(gains: Sequence[tuple[float, float, Measured]]) -> dict[str, Any] | None:
    if not gains:
        return None
    gain, estimate, row = min(gains, key=lambda one: one[0])
    where = {"layer": row.layer, "layout": row.layout, "density": row.density, "columns": row.columns}
    return {"speedup": round(gain, 2), "estimate": round(estimate, 2), **where}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/results/cpu"))
    parser.add_argument("--seconds", type=float, default=0.15, help="for each side of a measurement")
    parser.add_argument("--quick", action="store_true", help="two small layers")
    parser.add_argument("--report", action="store_true", help="fit the measurements that are there")
    options = parser.parse_args()
    path = options.output / "kernel_costs.json"
    if options.report:
        kept = json.loads(path.read_text())
        rows = [Measured(**{**row, "shape": tuple(row["shape"])}) for row in kept["rows"]]
    else:
        rows = []
        for row in measure(options.seconds, options.quick):
            rows.append(row)
            gain = row.dense / row.sparse
            line = f"{row.layer:20} {row.layout:10} {row.density:5.2f} {row.columns:6} columns {gain:6.2f}x"
            print(line, file=sys.stderr)
        options.output.mkdir(parents=True, exist_ok=True)
        kept = {"environment": environment(), "rows": [vars(row) for row in rows]}
    said = report(rows)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps({**kept, "fit": said}, indent=1) + "\n")
    beside.replace(path)
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main()
