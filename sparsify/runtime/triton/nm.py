"""n of every m inputs: torch's semi-structured product where the device has it, else expansion in registers.

The Triton kernels read the packed weight, spread it out to a dense tile in registers and multiply that on
tensor cores: fewer bytes than dense, the same multiplications. So they gain at small batches, where bytes
bound; at large ones only the semi-structured product, which skips the zeros, can.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsify.runtime.triton import tuning
from sparsify.runtime.triton.blocks import exact, multiplied, numbers
from sparsify.runtime.triton.epilogue import Ending, closed, combine, parts_like, store_tile
from sparsify.runtime.triton.language import tl, triton
from sparsify.runtime.triton.launch import Config, start
from sparsify.runtime.triton.packed import NM

SEMI_STRUCTURED_BATCH = 64
"""From so many rows of X on, float16 and bfloat16 2:4 weights go through torch's semi-structured product."""

INPUTS = 64
SMALL, WIDE = (Config("few", batch=16, entries=32, warps=warps, stages=4) for warps in (4, 8))
MIDDLE = Config("middle", batch=64, entries=64, warps=8, stages=3)
LARGE = Config("many", batch=128, entries=64, warps=8, stages=3)
GRADIENT = Config("gradient", batch=64, entries=64, warps=8, stages=2)


def configs_for(batch: int, x: Tensor) -> tuple[Config, ...]:
    """Tiles of the batch and of the outputs to try, the best guess first: as large as registers allow."""
    if batch <= 16 or exact(x):
        return (few(x),)
    return (MIDDLE, few(x)) if batch <= 64 or x.dtype.itemsize > 2 else (LARGE, MIDDLE)


@triton.jit
def place_at(indices: tl.tensor, entry: tl.tensor, live: tl.tensor, BITS: tl.constexpr) -> tl.tensor:
    """The place in its group of an entry."""
    EACH: tl.constexpr = 8 // BITS
    byte = tl.load(indices + entry // EACH, mask=live, other=0).to(tl.int32)
    return (byte >> (entry % EACH * BITS).to(tl.int32)) & ((1 << BITS) - 1)


@triton.jit
def expanded(
    values: tl.tensor,
    indices: tl.tensor,
    row: tl.tensor,
    group: tl.tensor,
    rows: tl.tensor,
    groups: tl.tensor,
    OUT: tl.constexpr,
    GROUPS: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
) -> tl.tensor:
    """[OUT, GROUPS · M]: a dense tile of the weight, zero beyond its edges."""
    first = (row.to(tl.int64)[:, None] * groups + group[None, :]) * N
    live = (row < rows)[:, None] & (group < groups)[None, :]
    lane = tl.arange(0, M)
    tile = tl.zeros([OUT, GROUPS, M], values.dtype.element_ty)
    for j in tl.static_range(N):
        value = tl.load(values + first + j, mask=live, other=0.0)
        place = place_at(indices, first + j, live, BITS)
        tile = tl.where(place[:, :, None] == lane[None, None, :], value[:, :, None], tile)
    return tl.reshape(tile, [OUT, GROUPS * M])


@triton.jit
def nm_product(
    x: tl.tensor,
    values: tl.tensor,
    indices: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    groups: tl.tensor,
    tiles: tl.tensor,
    share: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    BATCH: tl.constexpr,
    OUT: tl.constexpr,
    GROUPS: tl.constexpr,
    SPLITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """y `[batch, rows]` of x `[batch, groups · M]`; grid: tiles of OUT outputs by tiles of BATCH, splits."""
    row = tl.program_id(0) % tiles * OUT + tl.arange(0, OUT)
    batches = tl.program_id(0) // tiles * BATCH + tl.arange(0, BATCH)
    split = tl.program_id(1)
    inputs = groups * M
    lane = tl.arange(0, GROUPS * M)
    row_of_x = x + batches.to(tl.int64)[:, None] * inputs
    live = (batches < batch)[:, None]
    sums = tl.zeros([BATCH, OUT], ACC)
    for begin in range(split * share, tl.minimum((split + 1) * share, groups), GROUPS):
        group = begin + tl.arange(0, GROUPS)
        k = begin * M + lane
        taken = tl.load(row_of_x + k[None, :], mask=live & (k < inputs)[None, :], other=0.0)
        tile = expanded(values, indices, row, group, rows, groups, OUT, GROUPS, N, M, BITS)
        sums = multiplied(taken, tl.trans(tile.to(taken.dtype)), sums, PRECISION, WIDEN)
    store_tile(sums, bias, residual, y, batches, row, batch, rows, split, SPLITS, ACTIVATION, LOW, HIGH)


@triton.jit
def nm_input_gradient(
    dy: tl.tensor,
    values: tl.tensor,
    indices: tl.tensor,
    dx: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    groups: tl.tensor,
    tiles: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    BATCH: tl.constexpr,
    OUT: tl.constexpr,
    GROUPS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """dx `[batch, groups · M]` of dy `[batch, rows]`; grid: tiles of GROUPS groups of every tile of BATCH."""
    group = tl.program_id(0) % tiles * GROUPS + tl.arange(0, GROUPS)
    batches = tl.program_id(0) // tiles * BATCH + tl.arange(0, BATCH)
    lane = tl.arange(0, OUT)
    line = dy + batches.to(tl.int64)[:, None] * rows
    live = (batches < batch)[:, None]
    sums = tl.zeros([BATCH, GROUPS * M], ACC)
    for begin in range(0, rows, OUT):
        row = begin + lane
        slope = tl.load(line + row[None, :], mask=live & (row < rows)[None, :], other=0.0)
        tile = expanded(values, indices, row, group, rows, groups, OUT, GROUPS, N, M, BITS)
        # Zero there already; but Triton 3.7 fails on a TF32 operand for sm_90 that comes from a reshape.
        tile = tl.where((row < rows)[:, None], tile, 0.0)
        sums = multiplied(slope, tile.to(slope.dtype), sums, PRECISION, WIDEN)
    k = tl.program_id(0) % tiles * (GROUPS * M) + tl.arange(0, GROUPS * M)
    store_tile(sums, None, None, dx, batches, k, batch, groups * M, 0, 1, "none", None, None)


@triton.jit
def nm_weight_gradient(
    x: tl.tensor,
    dy: tl.tensor,
    indices: tl.tensor,
    gradient: tl.tensor,
    batch: tl.tensor,
    rows: tl.tensor,
    groups: tl.tensor,
    tiles: tl.tensor,
    N: tl.constexpr,
    M: tl.constexpr,
    BITS: tl.constexpr,
    BATCH: tl.constexpr,
    OUT: tl.constexpr,
    GROUPS: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """gradient `[rows, groups · N]`: a dense tile of dyᵀ · x, of which the stored places are kept."""
    row = tl.program_id(0) // tiles * OUT + tl.arange(0, OUT)
    group = tl.program_id(0) % tiles * GROUPS + tl.arange(0, GROUPS)
    inputs = groups * M
    k = tl.program_id(0) % tiles * (GROUPS * M) + tl.arange(0, GROUPS * M)
    lane = tl.arange(0, BATCH)
    sums = tl.zeros([OUT, GROUPS * M], ACC)
    for begin in range(0, batch, BATCH):
        batches = (begin + lane).to(tl.int64)
        live = batches < batch
        slope = tl.load(
            dy + batches[None, :] * rows + row[:, None], mask=live[None, :] & (row < rows)[:, None], other=0.0
        )
        taken = tl.load(
            x + batches[:, None] * inputs + k[None, :], mask=live[:, None] & (k < inputs)[None, :], other=0.0
        )
        sums = multiplied(slope, taken.to(slope.dtype), sums, PRECISION, WIDEN)
    dense = tl.reshape(sums, [OUT, GROUPS, M])
    first = (row.to(tl.int64)[:, None] * groups + group[None, :]) * N
    stored = (row < rows)[:, None] & (group < groups)[None, :]
    for j in tl.static_range(N):
        here = place_at(indices, first + j, stored, BITS)[:, :, None] == tl.arange(0, M)[None, None, :]
        kept = tl.sum(tl.where(here, dense, 0.0), axis=2)
        tl.store(gradient + first + j, kept.to(gradient.dtype.element_ty), mask=stored)


def few(x: Tensor) -> Config:
    """The smallest tile: wide types need more warps to hold theirs."""
    return WIDE if x.dtype.itemsize > 2 else SMALL


def _shape_arguments(packed: NM, config: Config) -> dict[str, Any]:
    return {
        "indices": packed.indices,
        "rows": packed.shape[0],
        "groups": packed.shape[1] // packed.m,
        "N": packed.n,
        "M": packed.m,
        "BITS": packed.index_bits,
        "BATCH": config.batch,
        "OUT": config.entries,
        "GROUPS": INPUTS // packed.m,
    }


def forward(x: Tensor, packed: NM, ending: Ending) -> Tensor:
    """What `ending` makes of X · Wᵀ: X `[batch, in]`, Y `[batch, out]`."""
    batch, rows = x.shape[0], packed.shape[0]
    compressed = packed.semi_structured
    if compressed is not None and batch >= SEMI_STRUCTURED_BATCH and x.dtype == packed.values.dtype:
        ready = None if ending.bias is None else ending.bias.to(x.dtype)
        y = torch.nn.functional.linear(x, compressed, ready)
        return closed(y if ending.residual is None else y + ending.residual.to(x.dtype), ending)
    y = torch.empty((batch, rows), dtype=x.dtype, device=x.device)

    def call(config: Config) -> None:
        arguments = _shape_arguments(packed, config)
        steps = triton.cdiv(arguments["groups"], arguments["GROUPS"])
        tiles = triton.cdiv(rows, config.entries)
        programs = tiles * triton.cdiv(batch, config.batch)
        splits = tuning.splits(programs, steps)
        parts = parts_like(y, splits)
        arguments |= {"x": x, "values": packed.values, "y": parts, "batch": batch, "tiles": tiles}
        arguments |= {"share": triton.cdiv(steps, splits) * arguments["GROUPS"], "SPLITS": splits}
        arguments |= {**ending.arguments(splits), **numbers(x)}
        start(nm_product, (programs, splits), arguments, config)
        combine(parts, ending, y)

    key = tuning.key_of("nm", x, packed.values, packed.shape, packed.n, packed.m, tuning.bucket(batch))
    tuning.run((*key, exact(x)), configs_for(batch, x), call, x.device)
    return y


def input_gradient(dy: Tensor, packed: NM) -> Tensor:
    """dY · W: dY `[batch, out]`, result `[batch, in]`."""
    batch, inputs = dy.shape[0], packed.shape[1]
    dx = torch.empty((batch, inputs), dtype=dy.dtype, device=dy.device)

    def call(config: Config) -> None:
        tiles = triton.cdiv(inputs, INPUTS)
        arguments = _shape_arguments(packed, config) | numbers(dy)
        arguments |= {"dy": dy, "values": packed.values, "dx": dx, "batch": batch, "tiles": tiles}
        start(nm_input_gradient, (tiles * triton.cdiv(batch, config.batch),), arguments, config)

    key = tuning.key_of("nm_input_gradient", dy, packed.values, packed.shape, packed.n, packed.m)
    tuning.run((*key, exact(dy), tuning.bucket(batch)), configs_for(batch, dy), call, dy.device)
    return dx


def weight_gradient(x: Tensor, dy: Tensor, packed: NM) -> Tensor:
    """dYᵀ · X at the stored positions `[out, in / m · n]`: X `[batch, in]`, dY `[batch, out]`."""
    gradient = torch.empty_like(packed.values)
    tiles = triton.cdiv(packed.shape[1], INPUTS)
    arguments = _shape_arguments(packed, GRADIENT) | numbers(dy)
    arguments |= {"x": x, "dy": dy, "gradient": gradient, "batch": x.shape[0], "tiles": tiles}
    start(nm_weight_gradient, (triton.cdiv(packed.shape[0], GRADIENT.entries) * tiles,), arguments, GRADIENT)
    return gradient
