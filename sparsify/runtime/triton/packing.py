"""Packs a dense weight and its mask for the GPU kernels, on the device where the weight lies."""

from __future__ import annotations

import itertools
import math
import re

import torch
from torch import Tensor

from sparsify.errors import UserError
from sparsify.runtime.triton.packed import NM, Blocks, Condensed, Csr, Packed, Rows, semi_structured

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types of weights and inputs; float64 is for gradient checks."""

BLOCK_SIDES = (16, 32, 64)
"""Sides of blocks that the tensor cores' kernels take."""

LAYOUTS = ("csr", "condensed", "blocks-RxC", "nm-N:M")
"""All layouts; R and C are of `BLOCK_SIDES`, M a power of two up to 64."""


def layout_of(mask: Tensor) -> str:
    """The layout that a mask fills without waste: what its kernels multiply is all active.

    Args:
        mask: Active positions, `[out, in]`.

    Returns:
        The largest `blocks-RxC` of which the mask is made; else `nm-N:M` with the smallest M; else
        `condensed` where all rows have equally many; else `csr`.
    """
    active = mask.bool()
    out, width = active.shape
    if not active.any():
        return "csr"
    for r, c in sorted(itertools.product(BLOCK_SIDES, repeat=2), key=math.prod, reverse=True):
        if out % r == 0 and width % c == 0:
            blocks = active.reshape(out // r, r, width // c, c)
            if blocks.any(3).any(1).equal(blocks.all(3).all(1)):
                return f"blocks-{r}x{c}"
    for m in _GROUPS:
        if width % m == 0:
            counts = active.reshape(out, width // m, m).sum(2)
            n = int(counts[0, 0])
            if 0 < n < m and bool((counts == n).all()):
                return f"nm-{n}:{m}"
    counts = active.sum(1)
    return "condensed" if bool((counts == counts[0]).all()) else "csr"


def pack(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    layout: str = "csr",
    dtype: torch.dtype | None = None,
    gradients: bool = True,
) -> Packed:
    """Packs the active positions of a weight.

    Args:
        weight: `[out, in]`, one of `DTYPES`.
        mask: Active positions, `[out, in]`; by default those of the non-zeros.
        layout: One of `LAYOUTS`.
        dtype: Type of the stored values; by default the weight's.
        gradients: Whether to build the transposed index of single weights, which the input gradient needs.

    Raises:
        UserError: The weight's shape or type, or a mask that the layout cannot hold.
    """
    kind = weight.dtype if dtype is None else dtype
    if weight.ndim != 2 or weight.numel() == 0 or kind not in DTYPES:
        raise UserError(
            f"a weight of shape {list(weight.shape)} and type {kind} cannot be packed for the GPU: it "
            f"must be a non-empty [out, in] of {', '.join(str(one).removeprefix('torch.') for one in DTYPES)}"
        )
    if mask is not None and mask.shape != weight.shape:
        raise UserError(f"a mask of shape {list(mask.shape)} does not fit a weight of {list(weight.shape)}")
    active = (weight.detach() != 0) if mask is None else mask.to(weight.device).bool()
    values = torch.where(active, weight.detach(), 0).to(kind)
    if layout == "csr":
        return _csr(values, active, gradients)
    if layout == "condensed":
        return _condensed(values, active, gradients, given=mask is not None)
    if found := re.fullmatch(r"blocks-(\d+)x(\d+)", layout):
        return _blocks(values, active, (int(found[1]), int(found[2])), given=mask is not None)
    if found := re.fullmatch(r"nm-(\d+):(\d+)", layout):
        return _nm(values, active, int(found[1]), int(found[2]), given=mask is not None)
    raise UserError(f"no GPU layout {layout!r}; there are {', '.join(LAYOUTS)}")


_GROUPS = (2, 4, 8, 16, 32, 64)


def _short(index: Tensor, limit: int) -> Tensor:
    """Indices below `limit`: in 16 bits where they fit, above 32767 as negative numbers of the same bits."""
    if limit > 1 << 16:
        return index.to(torch.int32)
    return torch.where(index >= 1 << 15, index - (1 << 16), index).to(torch.int16)


def _long(index: Tensor, limit: int) -> Tensor:
    return index.to(torch.int32 if limit < 1 << 31 else torch.int64)


def _pointers(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)


def _transposed(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> tuple[Rows, Tensor]:
    """The transposed index of entries in row order, and which value each of its entries is."""
    order = torch.argsort(columns, stable=True)
    counts = torch.bincount(columns, minlength=shape[1])
    index = Rows(_pointers(counts), _short(rows[order], shape[0]), values[order], int(counts.max()))
    return index, _long(order, order.numel() + 1)


def _csr(weight: Tensor, active: Tensor, gradients: bool) -> Csr:
    rows, columns = active.nonzero(as_tuple=True)
    out, inputs = int(weight.shape[0]), int(weight.shape[1])
    values, counts = weight[rows, columns], active.sum(1)
    transposed, order = _transposed(rows, columns, values, (out, inputs)) if gradients else (None, None)
    return Csr(
        shape=(out, inputs),
        values=values,
        positions=_long(rows * inputs + columns, out * inputs),
        transposed=transposed,
        order=order,
        pointers=_pointers(counts),
        columns=_short(columns, inputs),
        longest=int(counts.max()),
    )


def _condensed(weight: Tensor, active: Tensor, gradients: bool, *, given: bool) -> Condensed:
    counts = active.sum(1)
    fan_in = int(counts.max())
    if given and int(counts.min()) != fan_in:
        raise UserError(
            f"the mask has {int(counts.min())} to {fan_in} active inputs an output, but condensed needs as "
            "many for each: use the fan-in pattern, or layout csr"
        )
    out, inputs = int(weight.shape[0]), int(weight.shape[1])
    # Active ones first; rows of too few take inactive inputs, whose values are zero.
    columns = torch.argsort((~active).to(torch.uint8), dim=1, stable=True)[:, :fan_in].sort(1).values
    values = weight.gather(1, columns)
    rows = torch.arange(out, device=weight.device)[:, None].expand(-1, fan_in)
    transposed, order = (
        _transposed(rows.reshape(-1), columns.reshape(-1), values.reshape(-1), (out, inputs))
        if gradients
        else (None, None)
    )
    return Condensed(
        shape=(out, inputs),
        values=values,
        positions=_long(rows * inputs + columns, out * inputs),
        transposed=transposed,
        order=order,
        columns=_short(columns, inputs),
    )


def _in_blocks(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """`[⌈rows / R⌉, ⌈columns / C⌉, R, C]`, filled up with zeros (or -1 for positions)."""
    R, C = block
    extra = (-matrix.shape[1] % C, -matrix.shape[0] % R)
    fill = -1 if matrix.dtype == torch.int64 else 0
    whole = torch.nn.functional.pad(matrix, (0, extra[0], 0, extra[1]), value=fill)
    return whole.reshape(whole.shape[0] // R, R, whole.shape[1] // C, C).transpose(1, 2)


def _blocks(weight: Tensor, active: Tensor, block: tuple[int, int], *, given: bool) -> Blocks:
    if not set(block) <= set(BLOCK_SIDES):
        raise UserError(
            f"blocks of {block[0]}x{block[1]}: the sides of GPU blocks are of {BLOCK_SIDES}; use csr"
        )
    tiles = _in_blocks(active, block)
    kept = tiles.flatten(2).any(2)
    positions = torch.arange(weight.numel(), device=weight.device).reshape(weight.shape)
    tiled = _in_blocks(positions, block)
    if given and not bool((tiles | (tiled < 0))[kept].all()):
        raise UserError(
            f"the mask has blocks of {block[0]}x{block[1]} that are active only in part: use the pattern "
            f"{block[0]}x{block[1]}, smaller blocks, or layout csr"
        )
    rows, columns = kept.nonzero(as_tuple=True)
    counts, down = kept.sum(1), kept.sum(0)
    return Blocks(
        shape=(int(weight.shape[0]), int(weight.shape[1])),
        values=_in_blocks(weight, block)[rows, columns].contiguous(),
        positions=_long(tiled[rows, columns], weight.numel()),
        pointers=_pointers(counts),
        columns=columns.to(torch.int32),
        rows=rows.to(torch.int32),
        transposed_pointers=_pointers(down),
        order=torch.argsort(columns, stable=True).to(torch.int32),
        longest=(int(counts.max()), int(down.max())),
    )


def _nm(weight: Tensor, active: Tensor, n: int, m: int, *, given: bool) -> NM:
    out, inputs = int(weight.shape[0]), int(weight.shape[1])
    if m not in _GROUPS or not 0 < n <= m or inputs % m:
        raise UserError(
            f"{n}:{m} over {inputs} inputs: groups must be of {_GROUPS} inputs, 1 to all of them kept, and "
            "the inputs a multiple; use layout csr"
        )
    groups = active.reshape(out, inputs // m, m)
    counts = groups.sum(2)
    if int(counts.max()) > n or (given and int(counts.min()) != n):
        raise UserError(
            f"the mask is not {n}:{m}: groups have {int(counts.min())} to {int(counts.max())} active"
        )
    places = torch.argsort((~groups).to(torch.uint8), dim=2, stable=True)[:, :, :n].sort(2).values
    first = torch.arange(0, out * inputs, m, device=weight.device).reshape(out, inputs // m, 1)
    positions = (first + places).reshape(out, -1)
    return NM(
        shape=(out, inputs),
        values=weight.reshape(-1)[positions],
        positions=_long(positions, weight.numel()),
        m=m,
        n=n,
        index_bits=index_bits(m),
        indices=_packed_bits(places.reshape(-1), index_bits(m)),
        semi_structured=semi_structured(weight, n, m),
    )


def index_bits(m: int) -> int:
    """Bits of a place in a group of m inputs: 2, 4 or 8."""
    return 2 if m <= 4 else 4 if m <= 16 else 8


def _packed_bits(places: Tensor, bits: int) -> Tensor:
    each = 8 // bits
    whole = torch.nn.functional.pad(places, (0, -places.numel() % each)).reshape(-1, each)
    shifts = torch.arange(each, device=places.device) * bits
    return (whole << shifts).sum(1).to(torch.uint8)
