"""Times one linear layer: its plain ONNX file beside what `lower` makes of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.cpu.cells import Cell
from benchmarks.cpu.rounds import compare
from benchmarks.cpu.work import Work, sparse_work
from sparsify import lowering, runtime
from sparsify.runtime.layer_bench import parse_linear
from sparsify.runtime.layer_weights import masked_weight, natural_layout
from sparsify.runtime.library import selected_kernel
from sparsify.runtime.node_profile import sparse_weights

Array = np.ndarray[Any, np.dtype[Any]]
VECTORS = {"avx512": 64, "avx2": 32}
"""Bytes of a kernel's registers; 16 for others."""


def vector_bytes() -> int:
    """Bytes of the registers of the kernels in use."""
    return VECTORS.get(selected_kernel(), 16)


def write_layer(layer: str, pattern: str, sparsity: float, folder: Path) -> Path:
    """A file of one `Gemm` with a bias and zeros in place, for any batch size; made once.

    Args:
        layer: `INxOUT`.
        pattern: What its mask looks like.
        sparsity: Share of zeros.
        folder: Where files are kept.
    """
    path = folder / f"{layer}-{pattern}-{sparsity:g}.onnx"
    if path.exists():
        return path
    weight = masked_weight(parse_linear(layer).weight, sparsity, pattern)
    outputs, inputs = weight.shape
    bias = np.random.default_rng(1).standard_normal(outputs).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="layer", transB=1)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    onnx.save(model, beside)
    return beside.replace(path)


def time_layers(cell: Cell, seconds: float, folder: Path, *, forced: bool) -> list[dict[str, Any]]:
    """One row for every sparsity, all in the same blocks; the dense side is the first sparsity's plain file.

    Args:
        cell: With one batch size.
        seconds: For each side.
        folder: Where plain files are kept.
        forced: The layout that the pattern fills, whatever the estimate says, as `bench-layer` does.
    """
    batch = cell.batches[0]
    rows: dict[str, dict[str, Any]] = {}
    inputs = parse_linear(cell.model).weight[1]
    x = np.random.default_rng(batch).standard_normal((batch, inputs)).astype(np.float32)
    layout = natural_layout(cell.pattern) if forced else None
    with tempfile.TemporaryDirectory() as made:
        files = [write_layer(cell.model, cell.pattern, s, folder) for s in cell.sparsities]
        calls: dict[str, Callable[[], object]] = {
            "dense": _bound_call(runtime.Session(files[0], threads=cell.threads), x)
        }
        for sparsity, plain in zip(cell.sparsities, files, strict=True):
            lowered = Path(made) / plain.name
            report = lowering.lower(
                plain, lowered, layout=layout, tune=cell.tune, threads=cell.threads, batches=[batch]
            )
            name = f"{sparsity:g}"
            rows[name] = {"sparsity": sparsity, "batch": batch, "reason": report.layers[0].reason}
            rows[name] |= _described(lowered, batch, cell)
            rows[name]["max_abs_error"] = report.max_abs_error
            if report.nodes.sparse:
                calls[name] = _bound_call(runtime.Session(lowered, threads=cell.threads), x)
        found = compare(calls, seconds)
    return [_timed(row, found, name) for name, row in rows.items()]


def _timed(row: dict[str, Any], found: dict[str, Any], name: str) -> dict[str, Any]:
    """A row with its times; a layer that stays dense is the plain file itself and takes its time."""
    at = name if name in found["ms"] else "dense"
    row |= {"dense_ms": found["ms"]["dense"], "sparse_ms": found["ms"][at]}
    return row | {"speedup": found["speedup"][at], "range": found["range"][at]}


def _described(lowered: Path, batch: int, cell: Cell) -> dict[str, Any]:
    """Layout, non-zeros and needs of a lowered layer."""
    weight = next(iter(sparse_weights(onnx.load(lowered)).values()), None)
    outputs, inputs = parse_linear(cell.model).weight
    moved = 4.0 * batch * (inputs + outputs)
    if weight is None:
        size = 4 * inputs * outputs
        work = Work(2.0 * batch * inputs * outputs, 0.0, 0.0, size, moved)
        return {"layout": "dense", "works": [work.to_json()], "size": size}
    work_of_it = sparse_work(
        weight.shape,
        weight.nonzeros,
        weight.nbytes,
        batch,
        weight.layout,
        vector=vector_bytes(),
        moved=moved,
    )
    return {"layout": weight.layout, "works": [work_of_it.to_json()], "size": weight.nbytes}


def _bound_call(session: runtime.Session, x: Array) -> Callable[[], object]:
    """A call with input and output in place, so that nothing but the layer is timed."""
    y = session.run({"x": x})["y"]
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(y))
    return lambda: session.raw.run_with_iobinding(binding)
