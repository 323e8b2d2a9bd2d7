"""What csr and condensed share: sums over stored weights whose inputs are fetched by their indices.

Small batches are bound by the bytes of values and indices, which neighbouring lanes read side by side, once
for all rows of X; X itself stays in the caches. Larger batches take X transposed, so that one index serves
neighbouring lanes with neighbouring rows of X; then the sums and the gradients read whole lines.
"""

from __future__ import annotations

from torch import Tensor

from sparsify.runtime.triton import tuning
from sparsify.runtime.triton.epilogue import activate
from sparsify.runtime.triton.language import tl, triton
from sparsify.runtime.triton.launch import Config

SMALL_BATCH = 16
"""Up to so many rows of X the inputs are gathered one by one; above, in panels of X transposed."""

ROW_CONFIGS = (Config("long-rows", entries=128), Config("short-rows", entries=32))
PANEL_CONFIGS = (
    Config("panel-64", batch=64, entries=16, warps=2),
    Config("panel-128", batch=128, entries=16, warps=4),
)
GRADIENT_CONFIGS = (Config("gradient", batch=64, entries=32), Config("gradient-wide", batch=128, entries=16))

_TILE = 2048


def rows_of_program(rows: int, batch: int, entries: int) -> int:
    """Rows of W that a program takes: as many as fit in registers, but so few that the device is filled."""
    count = max(1, _TILE // (tuning.bucket(batch) * entries))
    while count > 1 and triton.cdiv(rows, count) < tuning.PROGRAMS:
        count //= 2
    return count


def turned(x: Tensor) -> Tensor:
    """A matrix with its first axis contiguous: `[columns, rows]`."""
    return x.t().contiguous()


@triton.jit
def column_at(columns: tl.tensor, entry: tl.tensor, used: tl.tensor) -> tl.tensor:
    """The column index of an entry, 0 where it is not used."""
    index = tl.load(columns + entry, mask=used, other=0).to(tl.int32)
    if columns.dtype.element_ty == tl.int16:
        index = index & 0xFFFF
    return index


@triton.jit
def row_sums(
    x: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    longest: tl.tensor,
    batches: tl.tensor,
    batch: tl.tensor,
    inputs: tl.tensor,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tensor:
    """[BATCH, ROWS]: sums over entries first … end of each of ROWS rows, x `[batch, inputs]`."""
    sums = tl.zeros([BATCH, ROWS, ENTRIES], ACC)
    lane = tl.arange(0, ENTRIES)
    row_of_x = x + batches.to(tl.int64)[:, None, None] * inputs
    live = (batches < batch)[:, None, None]
    for step in range(0, longest, ENTRIES):
        entry = first[:, None] + step + lane[None, :]
        used = entry < end[:, None]
        value = tl.load(values + entry, mask=used, other=0.0).to(ACC)
        column = column_at(columns, entry, used)
        taken = tl.load(row_of_x + column[None, :, :], mask=live & used[None, :, :], other=0.0)
        sums += value[None, :, :] * taken.to(ACC)
    return tl.sum(sums, axis=2)


@triton.jit
def panel_sums(
    xt: tl.tensor,
    values: tl.tensor,
    columns: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    batches: tl.tensor,
    batch: tl.tensor,
    BATCH: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tensor:
    """[BATCH]: sums over entries first … end of one row, x transposed `[inputs, batch]`."""
    sums = tl.zeros([ENTRIES, BATCH], ACC)
    lane = tl.arange(0, ENTRIES)
    live = (batches < batch)[None, :]
    for start in range(first, end, ENTRIES):
        entry = start + lane
        used = entry < end
        value = tl.load(values + entry, mask=used, other=0.0).to(ACC)
        line = column_at(columns, entry, used).to(tl.int64) * batch
        taken = tl.load(xt + line[:, None] + batches[None, :], mask=used[:, None] & live, other=0.0)
        sums += value[:, None] * taken.to(ACC)
    return tl.sum(sums, axis=0)


@triton.jit
def entry_gradients(
    xt: tl.tensor,
    dyt: tl.tensor,
    columns: tl.tensor,
    row: tl.tensor,
    entry: tl.tensor,
    used: tl.tensor,
    batch: tl.tensor,
    BATCH: tl.constexpr,
    ENTRIES: tl.constexpr,
    ACC: tl.constexpr,
) -> tl.tensor:
    """[ENTRIES]: Σ over the batch of dy at `row` times x at each entry's column, both transposed."""
    sums = tl.zeros([ENTRIES, BATCH], ACC)
    lane = tl.arange(0, BATCH)
    line = column_at(columns, entry, used).to(tl.int64) * batch
    for start in range(0, batch, BATCH):
        batches = start + lane
        live = batches < batch
        slope = tl.load(dyt + row.to(tl.int64) * batch + batches, mask=live, other=0.0).to(ACC)
        taken = tl.load(xt + line[:, None] + batches[None, :], mask=used[:, None] & live[None, :], other=0.0)
        sums += slope[None, :] * taken.to(ACC)
    return tl.sum(sums, axis=1)


@triton.jit
def store_panel(
    sums: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    yt: tl.tensor,
    row: tl.tensor,
    batches: tl.tensor,
    batch: tl.tensor,
    ACTIVATION: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
) -> None:
    """Finishes the sums of one row and stores them to y transposed `[out, batch]`; so is the residual."""
    place = row.to(tl.int64) * batch + batches
    live = batches < batch
    if bias is not None:
        sums += tl.load(bias + row).to(sums.dtype)
    if residual is not None:
        sums += tl.load(residual + place, mask=live, other=0.0).to(sums.dtype)
    tl.store(yt + place, activate(sums, ACTIVATION, LOW, HIGH).to(yt.dtype.element_ty), mask=live)
