"""Blocks of 16 to 64 outputs × inputs on tensor cores, summed in float32.

A program keeps a tile of the batch × one row of blocks and goes through the blocks of that row; for the input
gradient, through those of one column. TF32 serves float32 where torch allows it
(`torch.set_float32_matmul_precision("high")`), otherwise float32 is multiplied exactly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparsify.runtime.triton import tuning
from sparsify.runtime.triton.epilogue import (
    NOTHING,
    Ending,
    accumulator_name,
    combine,
    parts_like,
    store_tile,
)
from sparsify.runtime.triton.language import interpreted, tl, triton
from sparsify.runtime.triton.launch import Config, start
from sparsify.runtime.triton.packed import Blocks

SMALL = Config("few", batch=16, warps=2, stages=4)
MIDDLE = Config("middle", batch=64, warps=4, stages=3)
LARGE, EXACT = Config("many", batch=128), Config("many-exact", batch=128, warps=8)
GRADIENT_CONFIGS = (Config("gradient", batch=64, stages=3), Config("gradient-short", batch=32, stages=4))


def configs_for(batch: int, x: Tensor) -> tuple[Config, ...]:
    """Tiles of the batch to try, the best guess first: as large as registers allow."""
    if batch <= 16:
        return (SMALL,)
    return (MIDDLE, SMALL) if batch <= 64 else large_tiles(x)


def numbers(x: Tensor) -> dict[str, Any]:
    """How products of tiles are taken: their precision and types.

    The interpreter multiplies bfloat16 as if it were integers, so it is given the same numbers as float32.
    """
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "PRECISION": "ieee" if exact else "tf32",
        "ACC": accumulator_name(x.dtype),
        "WIDEN": interpreted() and x.dtype == torch.bfloat16,
    }


@triton.jit
def multiplied(
    a: tl.tensor,
    b: tl.tensor,
    sums: tl.tensor,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
) -> tl.tensor:
    """sums + a · b, in the type of `sums`."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=sums.dtype)


@triton.jit
def blocks_product(
    x: tl.tensor,
    values: tl.tensor,
    lines: tl.tensor,
    order: tl.tensor,
    pointers: tl.tensor,
    bias: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    batch: tl.tensor,
    groups: tl.tensor,
    width: tl.tensor,
    inputs: tl.tensor,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WHOLE: tl.constexpr,
    BATCH: tl.constexpr,
    SPLITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """y `[batch, width]` of x `[batch, inputs]`; grid: groups of OUT outputs of every tile of BATCH, splits.

    Block e covers inputs from lines[e] · IN on; TRANSPOSED takes blocks through `order`, their outputs last.
    WHOLE says that `inputs` is a multiple of IN.
    """
    group = tl.program_id(0) % groups
    batches = tl.program_id(0) // groups * BATCH + tl.arange(0, BATCH)
    split = tl.program_id(1)
    first = tl.load(pointers + group)
    end = tl.load(pointers + group + 1)
    share = tl.cdiv(end - first, SPLITS)
    first += split * share
    end = tl.minimum(first + share, end)
    i = tl.arange(0, IN)
    o = tl.arange(0, OUT)
    inside = i[:, None] * OUT + o[None, :] if TRANSPOSED else i[:, None] + o[None, :] * IN
    row_of_x = x + batches.to(tl.int64)[:, None] * inputs
    live = (batches < batch)[:, None]
    sums = tl.zeros([BATCH, OUT], ACC)
    for entry in range(first, end):
        block = tl.load(order + entry) if TRANSPOSED else entry
        k = tl.load(lines + block) * IN + i
        kept = live if WHOLE else live & (k < inputs)[None, :]
        taken = tl.load(row_of_x + k[None, :], mask=kept, other=0.0)
        weight = tl.load(values + block.to(tl.int64) * (IN * OUT) + inside)  # type: ignore[union-attr]
        sums = multiplied(taken, weight.to(taken.dtype), sums, PRECISION, WIDEN)
    outputs = group * OUT + o
    store_tile(sums, bias, residual, y, batches, outputs, batch, width, split, SPLITS, ACTIVATION, LOW, HIGH)


@triton.jit
def blocks_gradient(
    x: tl.tensor,
    dy: tl.tensor,
    columns: tl.tensor,
    rows: tl.tensor,
    gradient: tl.tensor,
    batch: tl.tensor,
    outputs: tl.tensor,
    inputs: tl.tensor,
    R: tl.constexpr,
    C: tl.constexpr,
    BATCH: tl.constexpr,
    PRECISION: tl.constexpr,
    ACC: tl.constexpr,
    WIDEN: tl.constexpr,
) -> None:
    """gradient `[blocks, R, C]` = dyᵀ · x at the blocks, dy `[batch, outputs]`; grid: blocks."""
    block = tl.program_id(0)
    n = tl.load(rows + block) * R + tl.arange(0, R)
    k = tl.load(columns + block) * C + tl.arange(0, C)
    lane = tl.arange(0, BATCH)
    sums = tl.zeros([R, C], ACC)
    for begin in range(0, batch, BATCH):
        batches = (begin + lane).to(tl.int64)
        live = batches < batch
        slope = tl.load(
            dy + batches[None, :] * outputs + n[:, None],
            mask=live[None, :] & (n < outputs)[:, None],
            other=0.0,
        )
        taken = tl.load(
            x + batches[:, None] * inputs + k[None, :], mask=live[:, None] & (k < inputs)[None, :], other=0.0
        )
        sums = multiplied(slope, taken.to(slope.dtype), sums, PRECISION, WIDEN)
    inside = tl.arange(0, R)[:, None] * C + tl.arange(0, C)[None, :]
    tl.store(gradient + block.to(tl.int64) * (R * C) + inside, sums.to(gradient.dtype.element_ty))


def exact(x: Tensor) -> bool:
    """Whether x is float32 that must not be rounded to TF32."""
    return x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"


def large_tiles(x: Tensor) -> tuple[Config, ...]:
    """Tiles for batches above 64: the largest in TF32 spills on sm_89, exact products need more warps."""
    if exact(x):
        return EXACT, MIDDLE
    return (MIDDLE,) if x.dtype.itemsize > 2 else (LARGE, MIDDLE)


def forward(x: Tensor, packed: Blocks, ending: Ending) -> Tensor:
    """What `ending` makes of X · Wᵀ: X `[batch, in]`, Y `[batch, out]`."""
    return _product(x, packed, ending, transposed=False)


def input_gradient(dy: Tensor, packed: Blocks) -> Tensor:
    """dY · W: dY `[batch, out]`, result `[batch, in]`."""
    return _product(dy, packed, NOTHING, transposed=True)


def _product(x: Tensor, packed: Blocks, ending: Ending, *, transposed: bool) -> Tensor:
    batch, inputs = x.shape
    (R, C), width = packed.block, packed.shape[1 if transposed else 0]
    IN, OUT = (R, C) if transposed else (C, R)
    groups = triton.cdiv(width, OUT)
    y = torch.empty((batch, width), dtype=x.dtype, device=x.device)

    def call(config: Config) -> None:
        programs = groups * triton.cdiv(batch, config.batch)
        splits = tuning.splits(programs, packed.longest[transposed])
        parts = parts_like(y, splits)
        arguments: dict[str, Any] = {
            "x": x,
            "values": packed.values,
            "lines": packed.rows if transposed else packed.columns,
        }
        arguments |= {"pointers": packed.transposed_pointers if transposed else packed.pointers}
        arguments |= {"order": packed.order, "y": parts, "batch": batch}
        arguments |= {"groups": groups, "width": width, "inputs": inputs, "IN": IN, "OUT": OUT}
        arguments |= {"TRANSPOSED": transposed, "WHOLE": inputs % IN == 0, "BATCH": config.batch}
        arguments |= {"SPLITS": splits, **ending.arguments(splits), **numbers(x)}
        start(blocks_product, (programs, splits), arguments, config)
        combine(parts, ending, y)

    key = tuning.key_of("blocks", x, packed.values, transposed, packed.shape, (R, C), packed.longest)
    tuning.run((*key, exact(x), tuning.bucket(batch)), configs_for(batch, x), call, x.device)
    return y


def weight_gradient(x: Tensor, dy: Tensor, packed: Blocks) -> Tensor:
    """dYᵀ · X at the stored blocks `[blocks, R, C]`: X `[batch, in]`, dY `[batch, out]`."""
    gradient = torch.empty_like(packed.values)
    (R, C), (outputs, inputs) = packed.block, packed.shape

    def call(config: Config) -> None:
        arguments: dict[str, Any] = {
            "x": x,
            "dy": dy,
            "columns": packed.columns,
            "rows": packed.rows,
            "gradient": gradient,
        }
        arguments |= {"batch": x.shape[0], "outputs": outputs, "inputs": inputs, "R": R, "C": C}
        arguments |= {"BATCH": config.batch, **numbers(dy)}
        start(blocks_gradient, (packed.values.shape[0],), arguments, config)

    if gradient.numel():
        key = tuning.key_of("blocks_gradient", x, dy, packed.values, packed.shape, (R, C), x.shape[0])
        tuning.run(key, GRADIENT_CONFIGS, call, x.device)
    return gradient
