"""Constant fan-in: rows of equal length, without pointers; the input gradient runs on compressed columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsify.runtime.triton import gather, tuning
from sparsify.runtime.triton.epilogue import accumulator_name, combine, parts_like, store_tile
from sparsify.runtime.triton.gather import entry_gradients, panel_sums, row_sums, store_panel
from sparsify.runtime.triton.language import tl, triton
from sparsify.runtime.triton.launch import Config, start
from sparsify.runtime.triton.packed import Condensed


@triton.jit
def condensed_rows(
    x: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    bias: tl.tensor,
    y: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    inputs: tl.tensor,
    fan_in: tl.tensor,
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
    share = tl.cdiv(tl.cdiv(fan_in, SPLITS), ENTRIES) * ENTRIES
    skipped = tl.minimum(split * share, fan_in)
    length = tl.minimum(share, fan_in - skipped)
    first = row * fan_in + skipped
    end = tl.where(row < rows, first + length, first)
    sums = row_sums(x, values, columns, first, end, length, batches, batch, inputs, BATCH, ROWS, ENTRIES, ACC)
    store_tile(sums, bias, y, batches, row, batch, rows, split, SPLITS, ACTIVATION)


@triton.jit
def condensed_panel(
    xt: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    bias: tl.tensor,
    yt: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    fan_in: tl.tensor,
    BATCH: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """y `[rows, batch]` of x `[inputs, batch]`; grid: all rows of one panel after another."""
    row = tl.program_id(0) % rows
    batches = tl.program_id(0) // rows * BATCH + tl.arange(0, BATCH)
    first = row * fan_in
    sums = panel_sums(xt, values, columns, first, first + fan_in, batches, batch, BATCH, ENTRIES, ACC)
    store_panel(sums, bias, yt, row, batches, batch, ACTIVATION)


@triton.jit
def condensed_gradient(
    xt: tl.tensor,
    dyt: tl.tensor,
    columns: tl.tensor,
    gradient: tl.tensor,
    batch: tl.tensor,
    fan_in: tl.tensor,
    chunks: tl.tensor,
    BATCH: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """Gradient at each entry; grid: chunks of ENTRIES of every row."""
    row = tl.program_id(0) // chunks
    place = tl.program_id(0) % chunks * ENTRIES + tl.arange(0, ENTRIES)
    used = place < fan_in
    entry = row * fan_in + place
    sums = entry_gradients(xt, dyt, columns, row, entry, used, batch, BATCH, ENTRIES, ACC)
    tl.store(gradient + entry, sums.to(gradient.dtype.element_ty), mask=used)


def forward(x: Tensor, packed: Condensed, bias: Tensor | None, activation: str) -> Tensor:
    """activation(X · Wᵀ + bias): X `[batch, in]`, Y `[batch, out]`."""
    batch, inputs = x.shape
    if batch > gather.SMALL_BATCH:
        return _panels(x, packed, bias, activation)
    rows, fan_in = packed.values.shape
    y = torch.empty((batch, rows), dtype=x.dtype, device=x.device)

    def call(config: Config) -> None:
        group = gather.rows_of_program(rows, batch, config.entries)
        groups = triton.cdiv(rows, group)
        splits = tuning.splits(groups, triton.cdiv(fan_in, config.entries))
        parts = parts_like(y, splits)
        arguments: dict[str, Any] = {
            "x": x,
            "values": packed.values,
            "columns": packed.columns,
            "y": parts,
            "batch": batch,
        }
        arguments |= {"bias": bias if splits == 1 else None, "rows": rows, "inputs": inputs, "fan_in": fan_in}
        arguments |= {"BATCH": tuning.bucket(batch), "ROWS": group, "ENTRIES": config.entries}
        arguments |= {"SPLITS": splits, "ACTIVATION": activation, "ACC": accumulator_name(x.dtype)}
        start(condensed_rows, (groups, splits), arguments, config)
        combine(parts, bias, y, activation)

    key = tuning.key_of("condensed_rows", x, packed.values, rows, inputs, fan_in, tuning.bucket(batch))
    tuning.run(key, gather.ROW_CONFIGS, call, x.device)
    return y


def _panels(x: Tensor, packed: Condensed, bias: Tensor | None, activation: str) -> Tensor:
    batch, inputs = x.shape
    rows, fan_in = packed.values.shape
    xt = gather.turned(x)
    yt = torch.empty((rows, batch), dtype=x.dtype, device=x.device)

    def call(config: Config) -> None:
        arguments: dict[str, Any] = {
            "xt": xt,
            "values": packed.values,
            "columns": packed.columns,
            "bias": bias,
            "yt": yt,
        }
        arguments |= {"batch": batch, "rows": rows, "fan_in": fan_in, "BATCH": config.batch}
        arguments |= {"ENTRIES": config.entries, "ACTIVATION": activation, "ACC": accumulator_name(x.dtype)}
        start(condensed_panel, (rows * triton.cdiv(batch, config.batch),), arguments, config)

    key = tuning.key_of("condensed_panel", x, packed.values, rows, inputs, fan_in, tuning.bucket(batch))
    tuning.run(key, gather.PANEL_CONFIGS, call, x.device)
    return gather.turned(yt)


def weight_gradient(x: Tensor, dy: Tensor, packed: Condensed) -> Tensor:
    """dYᵀ · X at the stored positions `[out, fan_in]`: X `[batch, in]`, dY `[batch, out]`."""
    xt, dyt = gather.turned(x), gather.turned(dy)
    gradient = torch.empty_like(packed.values)
    rows, fan_in = packed.values.shape

    def call(config: Config) -> None:
        chunks = triton.cdiv(fan_in, config.entries)
        arguments: dict[str, Any] = {"xt": xt, "dyt": dyt, "columns": packed.columns, "gradient": gradient}
        arguments |= {"batch": x.shape[0], "fan_in": fan_in, "chunks": chunks, "BATCH": config.batch}
        arguments |= {"ENTRIES": config.entries, "ACC": accumulator_name(packed.values.dtype)}
        start(condensed_gradient, (rows * chunks,), arguments, config)

    if gradient.numel():
        key = tuning.key_of("condensed_gradient", x, dy, packed.values, packed.shape, fan_in, x.shape[0])
        tuning.run(key, gather.GRADIENT_CONFIGS, call, x.device)
    return gradient
