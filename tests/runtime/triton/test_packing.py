"""Packed weights hold the weight, in the layout that was asked for."""

from __future__ import annotations

import pytest
import torch

from sparsify.errors import UserError
from sparsify.masks import parse_pattern
from sparsify.runtime.triton.packed import NM, Blocks, Condensed, Csr
from sparsify.runtime.triton.packing import layout_of, pack
from tests.runtime.triton.weights import LAYOUTS, mask, weight

SHAPE = (37, 56)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_gives_the_weight_back(layout: str, dtype: torch.dtype) -> None:
    active = mask(layout, *SHAPE)
    dense = weight(active, dtype)
    packed = pack(dense, active, layout=layout)
    assert packed.layout == layout
    assert packed.dense().equal(dense)
    other = torch.randn(SHAPE).to(dtype)
    assert packed.refreshed(other).dense().equal(torch.where(active, other, 0))
    assert packed.gathered(other).shape == packed.values.shape
    assert packed.to("meta").nbytes == packed.nbytes > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mask_may_follow_from_the_non_zeros(layout: str) -> None:
    dense = weight(mask(layout, *SHAPE), torch.float32)
    assert pack(dense, layout=layout).dense().equal(dense)


def test_active_zeros_are_stored_and_inactive_values_are_not() -> None:
    active = torch.tensor([[True, False], [True, True]])
    packed = pack(torch.tensor([[0.0, 5.0], [1.0, 0.0]]), active)
    assert isinstance(packed, Csr)
    assert packed.values.tolist() == [0, 1, 0]
    assert packed.pointers.tolist() == [0, 1, 3]
    assert packed.transposed is not None
    assert packed.transposed.columns.tolist() == [0, 1, 1]
    assert packed.order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("layout", ["csr", "condensed"])
def test_the_transposed_index_follows_new_values(layout: str) -> None:
    active = mask(layout, *SHAPE)
    packed = pack(weight(active, torch.float32), active, layout=layout)
    moved = packed.with_values(packed.values * 2)
    assert moved.transposed.values.equal(packed.transposed.values * 2)
    assert pack(weight(active, torch.float32), layout=layout, gradients=False).transposed is None


def test_bytes_of_an_index() -> None:
    packed = pack(weight(mask("condensed", 8, 64, 0.25), torch.float16), layout="condensed")
    assert isinstance(packed, Condensed)
    assert packed.nbytes == 8 * 16 * (2 + 2)
    packed = pack(weight(mask("nm-2:4", 8, 64), torch.float16), layout="nm-2:4")
    assert isinstance(packed, NM)
    assert packed.nbytes == 8 * 32 * 2 + 8 * 32 // 4
    packed = pack(weight(mask("blocks-16x16", 32, 64, 1.0), torch.float16), layout="blocks-16x16")
    assert isinstance(packed, Blocks)
    assert packed.nbytes == 4 * 256 * 2 + 4 * 4 + 3 * 4


@pytest.mark.parametrize(
    ("pattern", "layout"),
    [
        ("unstructured", "csr"),
        ("fan-in", "condensed"),
        ("2:4", "nm-2:4"),
        ("3:6", "condensed"),
        ("4x1", "csr"),
        ("16x16", "blocks-16x16"),
        ("128x48", "blocks-64x16"),
    ],
)
def test_a_mask_has_the_layout_that_it_fills(pattern: str, layout: str) -> None:
    torch.manual_seed(0)
    rule = parse_pattern(pattern)
    active = rule.random((384, 192), rule.count((384, 192), 0.5))
    assert layout_of(active) == layout
    dense = weight(active, torch.float32)
    assert pack(dense, active, layout=layout).dense().equal(dense)


def test_masks_without_a_pattern_are_csr() -> None:
    assert layout_of(torch.zeros(32, 32, dtype=torch.bool)) == "csr"
    full = torch.ones(32, 32, dtype=torch.bool)
    assert layout_of(full) == "blocks-32x32"
    full[3, 5] = False
    assert layout_of(full) == "csr"


@pytest.mark.parametrize(
    ("layout", "active", "message"),
    [
        ("condensed", [[1, 1], [1, 0]], "1 to 2 active inputs an output"),
        ("blocks-16x16", [[1, 1], [1, 0]], "active only in part"),
        ("blocks-8x8", [[1, 1], [1, 1]], "sides of GPU blocks"),
        ("nm-1:2", [[1, 1], [1, 0]], "not 1:2: groups have 1 to 2"),
        ("nm-1:4", [[1, 0], [1, 0]], "over 2 inputs"),
        ("slots", [[1, 1], [1, 1]], "no GPU layout 'slots'"),
    ],
)
def test_what_a_layout_cannot_hold(layout: str, active: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pack(torch.ones(2, 2), torch.tensor(active).bool(), layout=layout)


def test_what_cannot_be_packed() -> None:
    with pytest.raises(UserError, match=r"type torch.int32 cannot be packed"):
        pack(torch.ones(2, 2, dtype=torch.int32))
    with pytest.raises(UserError, match=r"mask of shape \[2, 3\]"):
        pack(torch.ones(2, 2), torch.ones(2, 3))
    with pytest.raises(UserError, match=r"weight of shape \[3, 2\] does not fit"):
        pack(torch.ones(2, 2)).refreshed(torch.ones(3, 2))
