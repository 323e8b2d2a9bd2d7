"""Measures the sparse operators of ONNX Runtime's CUDA provider beside cuBLAS, on a real device.

    python -m benchmarks.gpu_onnxruntime [--layer 4096x4096] [--batch 1,16,256] [--output FOLDER]

In one process and in alternating blocks: the dense product in TF32 (ONNX Runtime's default) and in float32,
and every layout of ours, blocks of 8 and 16 outputs in TF32 too. A model is eight such layers side by side,
so that what a call of ONNX Runtime costs by itself counts for an eighth; times are of one layer. Inputs and
outputs stay in the device's memory; a call ends when the device has finished. Beside each time stands what
`lowering.gpu_cost` estimates for an H100, which nothing has tested before. Writes OUTPUT/onnxruntime.json and
OUTPUT/onnxruntime.md. Refuses where there is no CUDA provider or no device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.study.document import table
from sparsify.lowering import lower
from sparsify.lowering.candidate import Candidate
from sparsify.lowering.gpu_cost import gpu_times
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from sparsify.runtime import Session, layouts
from sparsify.runtime.bench_provider import PROVIDERS, call_of
from sparsify.runtime.cuda import cuda_state
from sparsify.runtime.layer_weights import masked_weight
from sparsify.runtime.timing import interleave

PRECISION = "ai.sparsify.cuda_precision"
CASES = (("csr", 0.1), ("blocks-4", 0.1), ("blocks-8", 0.1), ("blocks-16", 0.1), ("blocks-16", 0.05))
DENSE = {"dense tf32": "1", "dense float32": "0"}
"""ONNX Runtime's `use_tf32` by contender."""

COPIES = 8
"""Layers side by side, on the same input, each with a weight of its own."""

_HEAD = ("layer", "layout", "density", "batch", "contender", "µs", "to dense TF32", "estimated µs")


def precisions(layout: str) -> tuple[str, ...]:
    """What a layout can be computed in: only wide blocks go to tensor cores."""
    return ("float32", "tf32") if layouts.block_rows(layout) >= 8 else ("float32",)


def dense_file(folder: Path, rows: int, columns: int, layout: str, density: float) -> Path:
    """Products in standard operators, zeros in place, with the blocks that a layout stores."""
    block = layouts.block_rows(layout)
    weight = masked_weight((rows, columns), 1 - density, f"{block}x1")
    copies = range(COPIES)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in copies],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", columns])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["batch", rows]) for i in copies],
        [
            numpy_helper.from_array(np.ascontiguousarray(np.roll(weight, i * block, axis=0).T), f"w{i}")
            for i in copies
        ],
    )
    path = folder / "dense.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def contenders(
    dense: Path, sparse: Path, layout: str, feeds: dict[str, Any]
) -> Iterator[tuple[str, Callable[[], object]]]:
    """A call of every contender, by name."""
    providers = PROVIDERS["cuda"]
    for name, tf32 in DENSE.items():
        options: list[dict[str, str]] = [{"use_tf32": tf32}, *({} for _ in providers[1:])]
        if providers[0] != "CUDAExecutionProvider":
            options[0] = {}
        yield name, call_of(Session(dense, providers=providers, provider_options=options), feeds, "cuda")
    for precision in precisions(layout):
        session = Session(sparse, providers=providers, config={PRECISION: precision})
        yield f"{layout} {precision}", call_of(session, feeds, "cuda")


def measured(
    rows: int, columns: int, layout: str, density: float, batches: Iterable[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """One record a batch size and contender."""
    with tempfile.TemporaryDirectory() as folder:
        dense = dense_file(Path(folder), rows, columns, layout, density)
        sparse = Path(folder) / "sparse.onnx"
        lower(dense, sparse, layout=layout, target="cuda")
        match = next(match for match in match_all(Graph(onnx.load(dense))) if isinstance(match, Candidate))
        for batch in batches:
            rng = np.random.default_rng(batch)
            feeds = {"x": rng.standard_normal((batch, columns), dtype=np.float32)}
            calls = dict(contenders(dense, sparse, layout, feeds))
            times = interleave(list(calls.values()), seconds=seconds, warmup=20)
            base = times[0].median
            estimates = gpu_times(match, batch, layout=layout)
            estimated = dict(zip(("dense tf32", f"{layout} float32"), estimates, strict=True))
            for name, timing in zip(calls, times, strict=True):
                yield {
                    "layer": f"{columns}→{rows}",
                    "layout": layout,
                    "density": density,
                    "batch": batch,
                    "contender": name,
                    "us": 1e6 * timing.median / COPIES,
                    "ratio": base / timing.median,
                    "estimated_us": estimated[name] / 1e3 if name in estimated else None,
                }


def document_of(device: str, found: list[dict[str, Any]]) -> str:
    """The measured table in Markdown."""
    rows = [
        (
            record["layer"],
            record["layout"],
            f"{record['density']:g}",
            str(record["batch"]),
            record["contender"],
            f"{record['us']:.1f}",
            f"{record['ratio']:.2f}×",
            "–" if record["estimated_us"] is None else f"{record['estimated_us']:.1f}",
        )
        for record in found
    ]
    return f"# ONNX Runtime on {device}\n\n{table(_HEAD, rows)}\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layer", default="4096x4096,768x3072", help="inputs x outputs, comma-separated")
    parser.add_argument("--batch", default="1,8,16,64,256,1024,4096")
    parser.add_argument("--duration", type=float, default=1.0, help="seconds for each contender")
    parser.add_argument("--output", type=Path, default=Path("docs/results/gpu"))
    options = parser.parse_args()
    state = cuda_state()
    if state.missing is not None:
        print(f"nothing to measure: {state.reason}. See `sparsify doctor`", file=sys.stderr)
        return 1
    found: list[dict[str, Any]] = []
    batches = [int(batch) for batch in options.batch.split(",")]
    for layer in options.layer.split(","):
        columns, rows = map(int, layer.split("x"))
        for layout, density in CASES:
            found += measured(rows, columns, layout, density, batches, options.duration)
    options.output.mkdir(parents=True, exist_ok=True)
    head = {"device": state.device, "driver": state.driver, "onnxruntime": onnxruntime.__version__}
    path = options.output / "onnxruntime.json"
    path.write_text(json.dumps(head | {"results": found}, indent=1) + "\n", encoding="utf-8")
    page = document_of(str(state.device), found)
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
