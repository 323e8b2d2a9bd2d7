"""Measures the GPU kernels beside the libraries' own, on a real device.

    python -m benchmarks.gpu [--layer 4096x4096] [--batch 1,16,256] [--kind float16,tf32] [--output FOLDER]

In one process, round by round: cuBLAS dense (float32 with TF32 where the kind says tf32), cuSPARSE through
torch's CSR products, torch's BSR and semi-structured products, and every layout of ours. A time is the median
over rounds of `triton.testing.do_bench`, which clears the L2 cache between calls. Shares are of the data
sheet's bandwidth and of the rate of the unit that multiplies; they are left out for GPUs whose data sheet is
not in here. Writes OUTPUT/measured.json and OUTPUT/measured.md. Refuses where there is no CUDA device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import triton.testing

from benchmarks.gpu_kernels import KINDS, masked, precision
from benchmarks.gpu_roofline import H100, Device, Layer, bound
from benchmarks.study.document import table
from sparsify.runtime.triton import linear, packing

Call = Callable[[], object]
ROUNDS = 5
DENSITIES = {"csr": 0.1, "condensed": 0.1, "blocks-16x16": 0.1, "blocks-32x32": 0.1, "blocks-64x64": 0.1}
DENSITIES |= {"nm-2:4": 0.5}


def known_device(name: str) -> Device | None:
    """The data sheet of a GPU by the name that its driver gives, where it is in here."""
    return H100 if "H100" in name and "HBM3" in name else None


def contenders(layer: Layer, layout: str, batch: int, kind: str) -> dict[str, Call]:
    """Ours, and what the libraries have for the same weight, by name."""
    dtype = KINDS[kind][0]
    mask = masked(layout, layer.rows, layer.columns, layer.density).cuda()
    weight = torch.randn(layer.rows, layer.columns, device="cuda").to(dtype) * mask
    x = torch.randn(batch, layer.columns, device="cuda").to(dtype)
    packed = packing.pack(weight, mask, layout=layout)
    found: dict[str, Call] = {
        "cuBLAS dense": lambda: torch.nn.functional.linear(x, weight),
        layout: lambda: linear.forward(x, packed),
    }
    if layout == "csr":
        csr, xt = weight.to_sparse_csr(), x.t().contiguous()
        found["cuSPARSE csr"] = lambda: csr @ xt
    if layout.startswith("blocks-"):
        bsr = weight.to_sparse_bsr(packed.values.shape[1:])
        found["torch bsr"] = lambda: torch.nn.functional.linear(x, bsr)
    if layout == "nm-2:4" and dtype in (torch.float16, torch.bfloat16):
        half = torch.sparse.to_sparse_semi_structured(weight)
        found["torch semi-structured"] = lambda: torch.nn.functional.linear(x, half)
    return found


def measure(calls: dict[str, Call], timer: Callable[[Call], float], rounds: int = ROUNDS) -> dict[str, Any]:
    """Median milliseconds of each call over rounds in which all take turns, or why one did not run.

    Args:
        calls: By name.
        timer: Milliseconds of a call.
        rounds: How often each is timed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    failures: dict[str, str] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            if name in failures:
                continue
            try:
                times[name].append(timer(call))
            except RuntimeError as error:  # a library that has no kernel for this shape or type says so
                failures[name] = str(error).splitlines()[0]
    return {name: failures.get(name) or statistics.median(times[name]) for name in calls}


def records(
    layer: Layer, layout: str, batch: int, kind: str, measured: dict[str, Any], device: Device | None
) -> list[dict[str, Any]]:
    """One record a contender: time, ratio to cuBLAS, shares of the device's ceilings."""
    dense = measured["cuBLAS dense"]
    found = []
    for name, time in measured.items():
        record = {"layout": layout, "density": layer.density, "batch": batch, "kind": kind, "contender": name}
        if isinstance(time, str):
            found.append({**record, "failure": time})
            continue
        record["ms"] = time
        record["ratio"] = dense / time if not isinstance(dense, str) else None
        if device is not None:
            counted = "dense" if name == "cuBLAS dense" else _counted_as(name, layout)
            least = bound(device, layer, counted, batch, kind)
            record["bandwidth_share"] = least.bytes_time / (time / 1e3)
            record["rate_share"] = least.flops_time / (time / 1e3)
        found.append(record)
    return found


def _counted_as(name: str, layout: str) -> str:
    return "semi-structured" if name == "torch semi-structured" else layout


def document_of(device: str, found: list[dict[str, Any]]) -> str:
    """The measured table in Markdown."""
    return f"# Measured on {device}\n\n{table(_HEAD, _rows(found))}\n"


_HEAD = ("layout", "density", "batch", "type", "contender", "µs", "to cuBLAS", "bandwidth", "rate")


def _rows(found: Iterable[dict[str, Any]]) -> Iterable[list[str]]:
    for record in found:
        start = [record["layout"], f"{record['density']:g}", str(record["batch"]), record["kind"]]
        if "failure" in record:
            yield [*start, record["contender"], record["failure"], "–", "–", "–"]
            continue
        ratio = "–" if record["ratio"] is None else f"{record['ratio']:.2f}×"
        shares = [f"{record[key]:.0%}" if key in record else "–" for key in ("bandwidth_share", "rate_share")]
        yield [*start, record["contender"], f"{1e3 * record['ms']:.1f}", ratio, *shares]


def _bench(call: Call) -> float:
    return float(triton.testing.do_bench(call, warmup=10, rep=50, return_mode="median"))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layer", default="4096x4096", help="inputs x outputs")
    parser.add_argument("--batch", default="1,16,64,256,1024,4096")
    parser.add_argument("--kind", default="float16,tf32", help=", ".join(KINDS))
    parser.add_argument("--output", type=Path, default=Path("docs/results/gpu"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "no CUDA device: torch finds none, so there is nothing to measure. Run this on a machine with an "
            "NVIDIA GPU, its driver and a CUDA build of torch; docs/results/gpu.md is what can be said now",
            file=sys.stderr,
        )
        return 1
    name = torch.cuda.get_device_name()
    columns, rows = map(int, options.layer.split("x"))
    found: list[dict[str, Any]] = []
    for layout, density in DENSITIES.items():
        layer = Layer(rows, columns, density)
        for kind in options.kind.split(","):
            for batch in map(int, options.batch.split(",")):
                with precision(kind):
                    measured = measure(contenders(layer, layout, batch, kind), _bench)
                found += records(layer, layout, batch, kind, measured, known_device(name))
    options.output.mkdir(parents=True, exist_ok=True)
    head = {"device": name, "torch": torch.__version__, "triton": triton.__version__, "layer": options.layer}
    (options.output / "measured.json").write_text(json.dumps(head | {"results": found}, indent=1) + "\n")
    page = document_of(name, found)
    (options.output / "measured.md").write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
