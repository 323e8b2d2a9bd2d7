"""csr and condensed: a program takes a few rows, or one row and a panel of the batch.

Rows of unequal length have pointers. Without pointers every row has `fan_in` entries, one row after another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsify.runtime.triton import gather, tuning
from sparsify.runtime.triton.epilogue import Ending, accumulator_name, combine, parts_like, store_tile
from sparsify.runtime.triton.gather import entry_gradients, panel_sums, row_sums, store_panel
from sparsify.runtime.triton.language import tl, triton
from sparsify.runtime.triton.launch import Config, start
from sparsify.runtime.triton.packed import Rows


@triton.jit
def rows_product(
    x: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    pointers: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
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
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """y `[batch, rows]` of x `[batch, inputs]`, batch ≤ BATCH; grid: row groups, splits of each row."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(1)
    batches = tl.arange(0, BATCH)
    if pointers is not None:
        first = tl.load(pointers + row, mask=row < rows, other=0)
        end = tl.load(pointers + row + 1, mask=row < rows, other=0)
        share = tl.cdiv(end - first, SPLITS)
        first += split * share
        end = tl.minimum(first + share, end)
        longest = tl.max(end - first, axis=0)
    else:
        share = tl.cdiv(tl.cdiv(fan_in, SPLITS), ENTRIES) * ENTRIES
        skipped = tl.minimum(split * share, fan_in)
        longest = tl.minimum(share, fan_in - skipped)
        first = row * fan_in + skipped
        end = tl.where(row < rows, first + longest, first)
    sums = row_sums(
        x, values, columns, first, end, longest, batches, batch, inputs, BATCH, ROWS, ENTRIES, ACC
    )
    store_tile(sums, bias, residual, y, batches, row, batch, rows, split, SPLITS, ACTIVATION, LOW, HIGH)


@triton.jit
def rows_panel(
    xt: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    pointers: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    yt: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    fan_in: tl.tensor,
    BATCH: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    """y and residual `[rows, batch]` of x `[inputs, batch]`; grid: all rows of one panel after another."""
    row = tl.program_id(0) % rows
    batches = tl.program_id(0) // rows * BATCH + tl.arange(0, BATCH)
    if pointers is not None:
        first = tl.load(pointers + row)
        end = tl.load(pointers + row + 1)
    else:
        first = row * fan_in
        end = first + fan_in
    sums = panel_sums(xt, values, columns, first, end, batches, batch, BATCH, ENTRIES, ACC)
    store_panel(sums, bias, residual, yt, row, batches, batch, ACTIVATION, LOW, HIGH)


@triton.jit
def rows_gradient(
    xt: tl.tensor,
    dyt: tl.tensor,
    columns: tl.tensor,
    pointers: tl.tensor,
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
    skipped = tl.program_id(0) % chunks * ENTRIES
    if pointers is not None:
        first = tl.load(pointers + row) + skipped
        end = tl.load(pointers + row + 1)
    else:
        first = row * fan_in + skipped
        end = row * fan_in + fan_in
    entry = first + tl.arange(0, ENTRIES)
    if first < end:
        used = entry < end
        sums = entry_gradients(xt, dyt, columns, row, entry, used, batch, BATCH, ENTRIES, ACC)
        tl.store(gradient + entry, sums.to(gradient.dtype.element_ty), mask=used)


def product(x: Tensor, index: Rows, rows: int, ending: Ending) -> Tensor:
    """What `ending` makes of X · Wᵀ: X `[batch, in]` contiguous, W in rows; Y `[batch, rows]`."""
    batch, inputs = x.shape
    if batch > gather.SMALL_BATCH:
        return _panels(x, index, rows, ending)
    y = torch.empty((batch, rows), dtype=x.dtype, device=x.device)

    def call(config: Config) -> None:
        group = gather.rows_of_program(rows, batch, config.entries)
        groups = triton.cdiv(rows, group)
        splits = tuning.splits(groups, triton.cdiv(index.longest, config.entries))
        parts = parts_like(y, splits)
        arguments = {**_entries(index), "x": x, "y": parts, "batch": batch, "rows": rows, "inputs": inputs}
        arguments |= {"BATCH": tuning.bucket(batch), "ROWS": group, "ENTRIES": config.entries}
        arguments |= {"SPLITS": splits, "ACC": accumulator_name(x.dtype), **ending.arguments(splits)}
        start(rows_product, (groups, splits), arguments, config)
        combine(parts, ending, y)

    key = _key("rows_product", x, index, rows, inputs, tuning.bucket(batch))
    tuning.run(key, gather.ROW_CONFIGS, call, x.device)
    return y


def _panels(x: Tensor, index: Rows, rows: int, ending: Ending) -> Tensor:
    batch, inputs = x.shape
    xt, turned = gather.turned(x), ending.turned()
    yt = torch.empty((rows, batch), dtype=x.dtype, device=x.device)

    def call(config: Config) -> None:
        arguments = {**_entries(index), "xt": xt, "yt": yt, "batch": batch, "rows": rows}
        arguments |= {"BATCH": config.batch, "ENTRIES": config.entries, "ACC": accumulator_name(x.dtype)}
        arguments |= turned.arguments()
        start(rows_panel, (rows * triton.cdiv(batch, config.batch),), arguments, config)

    key = _key("rows_panel", x, index, rows, inputs, tuning.bucket(batch))
    tuning.run(key, gather.PANEL_CONFIGS, call, x.device)
    return gather.turned(yt)


def weight_gradient(x: Tensor, dy: Tensor, index: Rows) -> Tensor:
    """dYᵀ · X at the stored positions, of the shape of the values: X `[batch, in]`, dY `[batch, out]`."""
    xt, dyt = gather.turned(x), gather.turned(dy)
    gradient = torch.empty_like(index.values)

    def call(config: Config) -> None:
        chunks = triton.cdiv(index.longest, config.entries)
        arguments = {**_entries(index), "xt": xt, "dyt": dyt, "gradient": gradient, "batch": x.shape[0]}
        del arguments["values"]
        arguments |= {"chunks": chunks, "BATCH": config.batch, "ENTRIES": config.entries}
        arguments |= {"ACC": accumulator_name(index.values.dtype)}
        start(rows_gradient, (dy.shape[1] * chunks,), arguments, config)

    if gradient.numel():
        key = _key("rows_gradient", x, index, dy.dtype, dy.shape[1], x.shape)
        tuning.run(key, gather.GRADIENT_CONFIGS, call, x.device)
    return gradient


def _entries(index: Rows) -> dict[str, Any]:
    """A kernel's arguments for the stored weights; what does not apply is a constant."""
    equal = index.pointers is None
    found: dict[str, Any] = {"values": index.values, "columns": index.columns, "pointers": index.pointers}
    return found | {"fan_in": index.longest if equal else None}


def _key(name: str, x: Tensor, index: Rows, *sizes: Any) -> tuple[Any, ...]:
    return tuning.key_of(name, x, index.values, index.pointers is None, index.longest, *sizes)
