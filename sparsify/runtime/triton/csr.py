"""Compressed sparse rows: a program takes a few rows, or one row and a panel of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsify.runtime.triton import gather, tuning
from sparsify.runtime.triton.epilogue import accumulator_name, combine, parts_like, store_tile
from sparsify.runtime.triton.gather import entry_gradients, panel_sums, row_sums, store_panel
from sparsify.runtime.triton.language import tl, triton
from sparsify.runtime.triton.launch import Config, start
from sparsify.runtime.triton.packed import Csr, Rows


@triton.jit
def csr_rows(
    x: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    pointers: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    inputs: tl.tensor,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    SPLITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """y `[batch, rows]` of x `[batch, inputs]`, batch ≤ BATCH; grid: row groups, splits of each row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    batches = tl.arange(0, BATCH)
    first = tl.load(pointers + row, mask=row < rows, other=0)
    end = tl.load(pointers + row + 1, mask=row < rows, other=0)
    share = tl.cdiv(end - first, SPLITS)
    first += split * share
    end = tl.minimum(first + share, end)
    longest = tl.max(end - first, axis=0)
    sums = row_sums(
        x, values, columns, first, end, longest, batches, batch, inputs, BATCH, ROWS, ENTRIES, ACC
    )
    store_tile(sums, bias, y, batches, row, batch, rows, split, SPLITS, ACTIVATION)


@triton.jit
def csr_panel(
    xt: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    pointers: tl.tensor,
    bias: tl.tensor,
    yt: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    BATCH: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """y `[rows, batch]` of x `[inputs, batch]`; grid: all rows of one panel after another."""
    row = tl.program_id(0) % rows
    batches = tl.program_id(0) // rows * BATCH + tl.arange(0, BATCH)
    first = tl.load(pointers + row)
    end = tl.load(pointers + row + 1)
    sums = panel_sums(xt, values, columns, first, end, batches, batch, BATCH, ENTRIES, ACC)
    store_panel(sums, bias, yt, row, batches, batch, ACTIVATION)


@triton.jit
def csr_gradient(
    xt: tl.tensor,
    dyt: tl.tensor,
    columns: tl.tensor,
    pointers: tl.tensor,
    gradient: tl.tensor,
    batch: tl.tensor,
    chunks: tl.tensor,
    BATCH: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """Gradient at each entry; grid: chunks of ENTRIES of every row."""
    row = tl.program_id(0) // chunks
    first = tl.load(pointers + row) + tl.program_id(0) % chunks * ENTRIES
    entry = first + tl.arange(0, ENTRIES)
    end = tl.load(pointers + row + 1)
    if first < end:
        used = entry < end
        sums = entry_gradients(xt, dyt, columns, row, entry, used, batch, BATCH, ENTRIES, ACC)
        tl.store(gradient + entry, sums.to(gradient.dtype.element_ty), mask=used)


def product(x: Tensor, index: Rows, rows: int, bias: Tensor | None, activation: str) -> Tensor:
    """activation(X · Wᵀ + bias): X `[batch, inputs]` contiguous, W compressed rows; Y `[batch, rows]`."""
    batch, inputs = x.shape
    if batch > gather.SMALL_BATCH:
        return _panels(x, index, rows, bias, activation)
    y = torch.empty((batch, rows), dtype=x.dtype, device=x.device)

    def call(config: Config) -> None:
        group = gather.rows_of_program(rows, batch, config.entries)
        groups = triton.cdiv(rows, group)
        splits = tuning.splits(groups, triton.cdiv(index.longest, config.entries))
        parts = parts_like(y, splits)
        arguments: dict[str, Any] = {
            "x": x,
            "values": index.values,
            "columns": index.columns,
            "pointers": index.pointers,
        }
        arguments |= {"bias": bias if splits == 1 else None, "y": parts, "batch": batch, "rows": rows}
        arguments |= {
            "inputs": inputs,
            "BATCH": tuning.bucket(batch),
            "ROWS": group,
            "ENTRIES": config.entries,
        }
        arguments |= {"SPLITS": splits, "ACTIVATION": activation, "ACC": accumulator_name(x.dtype)}
        start(csr_rows, (groups, splits), arguments, config)
        combine(parts, bias, y, activation)

    key = tuning.key_of("csr_rows", x, index.values, rows, inputs, index.longest, tuning.bucket(batch))
    tuning.run(key, gather.ROW_CONFIGS, call, x.device)
    return y


def _panels(x: Tensor, index: Rows, rows: int, bias: Tensor | None, activation: str) -> Tensor:
    batch, inputs = x.shape
    xt = gather.turned(x)
    yt = torch.empty((rows, batch), dtype=x.dtype, device=x.device)

    def call(config: Config) -> None:
        arguments: dict[str, Any] = {
            "xt": xt,
            "values": index.values,
            "columns": index.columns,
            "pointers": index.pointers,
        }
        arguments |= {"bias": bias, "yt": yt, "batch": batch, "rows": rows, "BATCH": config.batch}
        arguments |= {"ENTRIES": config.entries, "ACTIVATION": activation, "ACC": accumulator_name(x.dtype)}
        start(csr_panel, (rows * triton.cdiv(batch, config.batch),), arguments, config)

    key = tuning.key_of("csr_panel", x, index.values, rows, inputs, index.longest, tuning.bucket(batch))
    tuning.run(key, gather.PANEL_CONFIGS, call, x.device)
    return gather.turned(yt)


def forward(x: Tensor, packed: Csr, bias: Tensor | None, activation: str) -> Tensor:
    """activation(X · Wᵀ + bias): X `[batch, in]`, Y `[batch, out]`."""
    index = Rows(packed.pointers, packed.columns, packed.values, packed.longest)
    return product(x, index, packed.shape[0], bias, activation)


def weight_gradient(x: Tensor, dy: Tensor, packed: Csr) -> Tensor:
    """dYᵀ · X at the stored positions: X `[batch, in]`, dY `[batch, out]`."""
    xt, dyt = gather.turned(x), gather.turned(dy)
    gradient = torch.empty_like(packed.values)

    def call(config: Config) -> None:
        chunks = triton.cdiv(packed.longest, config.entries)
        arguments: dict[str, Any] = {
            "xt": xt,
            "dyt": dyt,
            "columns": packed.columns,
            "pointers": packed.pointers,
        }
        arguments |= {"gradient": gradient, "batch": x.shape[0], "chunks": chunks, "BATCH": config.batch}
        arguments |= {"ENTRIES": config.entries, "ACC": accumulator_name(packed.values.dtype)}
        start(csr_gradient, (packed.shape[0] * chunks,), arguments, config)

    if gradient.numel():
        key = tuning.key_of("csr_gradient", x, dy, packed.values, packed.shape, packed.longest, x.shape[0])
        tuning.run(key, gather.GRADIENT_CONFIGS, call, x.device)
    return gradient
