from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparsify.errors import RuntimeLibraryError, UserError
from sparsify.runtime.layouts import LAYOUTS, Packed, block_rows, pack_conv, pack_linear, stored, unpack
from tests.runtime.native import Kernel


def sparse(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[rng.random(shape) >= density] = 0
    return weight


def blocks(shape: tuple[int, ...], density: float, rows: int, seed: int = 0) -> np.ndarray:
    """Zeros in blocks of `rows` outputs; the last block is cut off where they do not divide the outputs."""
    rng = np.random.default_rng(seed)
    kept = rng.random((-(-shape[0] // rows), *shape[1:])) < density
    weight = rng.standard_normal(shape).astype(np.float32)
    return np.asarray(weight * np.repeat(kept, rows, axis=0)[: shape[0]], np.float32)


def corrupted(packed: Packed, index: int, change) -> Packed:
    tensors = [tensor.copy() for tensor in packed.tensors]
    tensors[index] = change(tensors[index])
    return replace(packed, tensors=tuple(tensors))


def put(position: int, value: int):
    def change(tensor: np.ndarray) -> np.ndarray:
        tensor[position] = value
        return tensor

    return change


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (3, 70000), (64, 128), (17, 33)])
def test_linear_unpacks_to_itself(shape: tuple[int, int], density: float, layout: str) -> None:
    weight = sparse(shape, density)
    packed = pack_linear(weight, layout=layout)
    assert packed.tensors[3].size == max(stored(weight, layout), block_rows(layout))
    assert np.array_equal(unpack(packed), weight)
    assert packed.attributes["out_features"] == shape[0]
    assert packed.attributes["in_features"] == shape[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4, 3, 1, 1), (8, 5, 3, 3), (2, 7, 5, 2)])
def test_conv_unpacks_to_itself(shape: tuple[int, ...], layout: str) -> None:
    weight = sparse(shape, 0.3)
    packed = pack_conv(weight, strides=(2, 1), pads=(0, 1, 2, 3), dilations=(1, 2), layout=layout)
    assert np.array_equal(unpack(packed), weight)
    assert packed.attributes["kernel_shape"] == list(shape[2:])
    assert packed.attributes["pads"] == [0, 1, 2, 3]


@pytest.mark.parametrize(("layout", "share"), [("csr", 0.17), ("blocks-4", 0.13), ("blocks-16", 0.11)])
def test_packed_bytes_at_ninety_percent(layout: str, share: float) -> None:
    weight = blocks((768, 3072), 0.1, block_rows(layout))
    assert pack_linear(weight, layout=layout).nbytes <= share * weight.nbytes


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_blocks_store_whole_blocks(layout: str) -> None:
    rows = block_rows(layout)
    weight = np.zeros((2 * rows + 1, 5), np.float32)
    weight[rows, 3] = weight[2 * rows, 0] = 1
    assert stored(weight, layout) == 2 * rows
    assert stored(weight, "csr") == 2
    assert pack_linear(weight, layout=layout).tensors[1].tolist() == [0, 0, 1, 2]


def test_unknown_names_of_layouts_are_refused() -> None:
    with pytest.raises(UserError, match="blocks-16"):
        stored(np.ones((2, 2), np.float32), "blocks-3")


@pytest.mark.parametrize("layout", ["csr", "blocks-4"])
@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_sixteen_bits_round_as_torch_does(layout: str, dtype: str, kind: torch.dtype) -> None:
    weight = sparse((60, 80), 0.4)
    special = [1e-8, 6e-8, 3e-5, 6.1e-5, 65504, -65519, 1.0009765, 1 + 2**-8, 1 + 3 * 2**-8, 2**-24 * 1.5]
    weight[0, : len(special)] = special
    packed = pack_linear(weight, layout=layout, dtype=dtype)
    assert np.array_equal(unpack(packed), torch.from_numpy(weight).to(kind).float().numpy())
    assert packed.tensors[3].nbytes * 2 == pack_linear(weight, layout=layout).tensors[3].nbytes


def test_bytes_in_sixteen_bits_at_ninety_percent() -> None:
    weight = sparse((768, 3072), 0.1)
    assert pack_linear(weight, dtype="bfloat16").nbytes <= 0.11 * weight.nbytes


def test_weights_too_large_for_sixteen_bits_and_unknown_types_are_refused() -> None:
    weight = np.full((2, 2), 70_000, np.float32)
    with pytest.raises(RuntimeLibraryError, match="too large"):
        pack_linear(weight, dtype="float16")
    assert np.isfinite(unpack(pack_linear(weight, dtype="bfloat16"))).all()
    with pytest.raises(UserError, match="bfloat16"):
        pack_linear(weight, dtype="int8")


def test_infinite_and_nan_weights_are_kept() -> None:
    weight = np.array([[0, np.inf, np.nan, -0.0, 1e-40]], np.float32)
    back = unpack(pack_linear(weight))
    assert np.array_equal(back, np.array([[0, np.inf, np.nan, 0, 1e-40]], np.float32), equal_nan=True)


@pytest.mark.parametrize(
    "weight", [np.ones((2, 3)), np.ones((0, 3), np.float32), np.ones((2, 3, 4), np.float32)]
)
def test_weights_that_cannot_be_packed_are_refused(weight: np.ndarray) -> None:
    with pytest.raises(UserError, match="cannot be packed"):
        pack_linear(weight)


def test_unknown_layout_is_refused() -> None:
    with pytest.raises(RuntimeLibraryError, match="layout"):
        pack_linear(np.ones((2, 2), np.float32), layout="nonsense")


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, put(0, 7), "mark"),
        (0, put(1, 99), "version 99"),
        (0, put(2, 41), "41 x 60"),
        (0, put(4, -1), "blocks"),
        (0, put(6, 4), "blocks of 4"),
        (0, put(4, 5), "elements"),
        (0, put(5, 3), "column index"),
        (0, put(7, 3), "type of values"),
        (0, put(7, 1), "element type"),
        (0, lambda t: t[:4], "header"),
        (1, put(3, 10**6), "pointers"),
        (1, put(0, 1), "pointers"),
        (1, put(5, 0), "pointers"),
        (1, lambda t: t[:-1], "row pointers"),
        (1, lambda t: t.astype(np.float32), "element type"),
        (2, put(0, 60), "out of bounds"),
        (2, lambda t: t[::-1].copy(), "out of order"),
        (2, lambda t: t[:-1], "column indices"),
        (2, lambda t: t.astype(np.int32), "element type"),
        (3, lambda t: t[:-1], "values"),
    ],
)
def test_corrupt_packed_weights_are_refused(index: int, change, message: str) -> None:
    packed = corrupted(pack_linear(sparse((40, 60), 0.5)), index, change)
    with pytest.raises(RuntimeLibraryError, match=message):
        unpack(packed)
    with pytest.raises(RuntimeLibraryError, match=message):
        Kernel(packed)


def test_missing_tensor_is_refused() -> None:
    packed = pack_linear(sparse((4, 6), 0.5))
    with pytest.raises(RuntimeLibraryError, match="packed tensors"):
        Kernel(replace(packed, tensors=packed.tensors[:-1]))


@pytest.mark.parametrize("layout", ["csr", "blocks-4", "blocks-16"])
def test_flipped_bytes_never_crash(layout: str) -> None:
    """Whatever a byte becomes, the weight is refused or runs within its bounds."""
    rng = np.random.default_rng(7)
    packed = pack_linear(sparse((40, 60), 0.3), layout=layout)
    x = rng.standard_normal((20, 60)).astype(np.float32)
    refused = ran = 0
    for _ in range(400):
        index = int(rng.integers(len(packed.tensors)))
        position, bit = rng.integers(packed.tensors[index].nbytes), rng.integers(8)

        def flip(tensor: np.ndarray, position: int = position, bit: int = bit) -> np.ndarray:
            tensor.view(np.uint8)[position] ^= np.uint8(1 << bit)
            return tensor

        broken = corrupted(packed, index, flip)
        try:
            kernel = Kernel(broken)
        except RuntimeLibraryError:
            refused += 1
            continue
        ran += 1
        kernel.run(x)
        kernel.run(x[:1])
    assert refused > 50
    assert ran > 50


@pytest.mark.parametrize(
    ("layout", "entries"), [("csr", 3), ("blocks-2", 4), ("blocks-4", 8), ("blocks-16", 32)]
)
def test_a_layout_stores_whole_blocks(layout: str, entries: int):
    weight = np.zeros((10, 7, 1, 1), np.float32)
    weight[0, 0] = weight[1, 0] = weight[9, 3] = 1
    assert stored(weight, layout) == entries
