"""Bytes of sparse weights, in the file and in memory, over those of the dense weights in float32.

In memory are the packed tensors, which kernels refer to, and what the kernels derive from them at first use.
The latter is counted by the C library's own allocator; elsewhere only the file's bytes are known. Weights in
external data are mapped, and how much of them stays in memory after a run is asked of the system.
"""

from __future__ import annotations

import ctypes
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.cpu import resident
from benchmarks.cpu.cells import DTYPES, Cell
from benchmarks.cpu.layers import write_layer
from sparsify import lowering
from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library
from sparsify.runtime.joined import separated
from sparsify.runtime.layer_weights import natural_layout
from sparsify.runtime.layouts import Packed, tensor_structures
from sparsify.runtime.zero_filled import sparse_nodes

Shape = tuple[int, ...]


class _Heap(ctypes.Structure):
    """glibc's `mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def heap_bytes() -> int | None:
    """Bytes that are allocated in this process; None where the C library does not tell."""
    if sys.platform != "linux":
        return None
    ask = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if ask is None:
        return None
    ask.restype = _Heap
    found = ask()
    return int(found.uordblks + found.hblkhd)


def layer_rows(cell: Cell) -> list[dict[str, Any]]:
    """Bytes of one linear layer in every number type: in the file, and in memory for each batch size."""
    layout = natural_layout(cell.pattern)
    with tempfile.TemporaryDirectory() as made:
        plain = write_layer(cell.model, cell.pattern, cell.sparsities[0], Path(made))
        return [row for dtype in DTYPES for row in _rows(cell, plain, layout, dtype)]


def network_rows(cell: Cell, plain: Path) -> list[dict[str, Any]]:
    """Bytes of all sparse layers of a network, lowered with each number type.

    Args:
        cell: With one batch size.
        plain: The network in standard operators, zeros in place.
    """
    return [row for dtype in DTYPES[:2] for row in _rows(cell, plain, None, dtype)]


def _rows(cell: Cell, plain: Path, layout: str | None, dtype: str) -> list[dict[str, Any]]:
    """Shares of the dense bytes for each batch size; none where every layer stayed dense.

    `file` counts packed weights, `memory` these and what kernels derive from them, and `mapped` what stays in
    memory of the weights where they are external data, and the same derived form.
    """
    with tempfile.TemporaryDirectory() as made:
        lowered = Path(made) / "lowered.onnx"
        report = lowering.lower(
            plain,
            lowered,
            layout=layout,
            threads=cell.threads,
            batches=cell.batches[:1],
            weight_dtype=dtype,
            external_data=True,
            chains=False,  # whose kernels keep forms of their own, one each as well
        )
        packed = dict(packed_nodes(onnx.load(lowered)))
        runs = [resident.run(lowered, batch, cell.threads) for batch in cell.batches]
    size = sum(found.nbytes for found in packed.values())
    dense = sum(4 * math.prod(found.shape) for found in packed.values())
    shared = {"layout": layout or "chosen", "dtype": dtype, "sparse": report.nodes.sparse}
    rows = []
    for batch, run in zip(cell.batches, runs, strict=True) if dense else ():
        extras = [derived(found, run.shapes[name]) for name, found in packed.items()]
        known = [extra for extra in extras if extra is not None]
        extra = sum(known) if len(known) == len(extras) else None
        mapped = None if run.resident is None else _over(run.resident, extra, dense)
        memory = _over(size, extra, dense)
        rows.append(shared | {"batch": batch, "file": size / dense, "memory": memory, "mapped": mapped})
    return rows


def packed_nodes(model: onnx.ModelProto) -> Iterator[tuple[str, Packed]]:
    """The packed weights of a lowered model's nodes, by name."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in separated(sparse_nodes(model)):
        attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "SparseLinear":
            shape: Shape = (attributes["out_features"], attributes["in_features"])
        else:
            shape = (attributes["out_channels"], attributes["in_channels"], *attributes["kernel_shape"])
        tensors = tuple(numpy_helper.to_array(constants[name]) for name in node.input[3:])
        yield node.name, Packed(node.op_type, attributes["layout"].decode(), shape, tensors, attributes)


def derived(packed: Packed, x_shape: Sequence[int]) -> int | None:
    """Bytes that a kernel keeps beside the packed tensors once it has run on an input; None if unknown.

    Args:
        packed: The weight.
        x_shape: Shape of the input: [rows…, in], or [batch, in, height, width].

    Raises:
        RuntimeLibraryError: The library refuses the weight.
    """
    native, handle = library.load(), ctypes.c_void_p()
    before = heap_bytes()
    if before is None:
        return None
    structures = tensor_structures(packed.tensors)
    tail = (structures, len(structures), ctypes.byref(handle))
    layout, options = packed.layout.encode(), library.RunOptions(threads=1)
    x = np.zeros(x_shape, np.float32)
    attributes: dict[str, Any] = packed.attributes
    if packed.operator == "SparseLinear":
        y = np.empty((*x.shape[:-1], packed.shape[0]), np.float32)
        before = heap_bytes()
        _check(native.sparsify_linear_create(layout, None, *packed.shape, *tail))
        rows = x.size // packed.shape[1]
        _check(native.sparsify_linear_run(handle, x.ctypes.data, rows, ctypes.byref(options), y.ctypes.data))
        free = native.sparsify_linear_free
    else:
        geometry = library.ConvAttributes(
            packed.shape[0],
            packed.shape[1],
            (ctypes.c_int64 * 2)(*packed.shape[2:]),
            (ctypes.c_int64 * 2)(*attributes["strides"]),
            (ctypes.c_int64 * 4)(*attributes["pads"]),
            (ctypes.c_int64 * 2)(*attributes["dilations"]),
        )
        y = np.empty((x.shape[0], packed.shape[0], *(size + 8 for size in x.shape[2:])), np.float32)
        before = heap_bytes()
        _check(native.sparsify_conv_create(layout, None, ctypes.byref(geometry), *tail))
        _check(
            native.sparsify_conv_run(
                handle, x.ctypes.data, *x.shape[:1], *x.shape[2:], options, y.ctypes.data
            )
        )
        free = native.sparsify_conv_free
    after = heap_bytes()
    free(handle)
    return None if after is None or before is None else max(0, after - before)


def _check(status: int) -> None:
    if status:
        raise RuntimeLibraryError(library.last_error(library.load()))


def _over(size: int, extra: int | None, dense: int) -> float | None:
    return None if extra is None else (size + extra) / dense
