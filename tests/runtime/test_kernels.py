"""Every instruction set of the kernel table against the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library
from sparsify.runtime.layouts import LAYOUTS, Packed, block_rows, pack_conv, pack_linear, unpack
from sparsify.runtime.reference import ACTIVATIONS, sparse_conv, sparse_linear
from tests.runtime.native import Kernel, supported_kernels
from tests.runtime.test_layouts import blocks, sparse

KERNELS = supported_kernels()
BATCHES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 70]
BOUNDS = (-0.5, 0.75)
EPSILON = float(np.finfo(np.float32).eps)


def normal(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(packed: Packed, x: np.ndarray, *rest) -> np.ndarray:
    return (sparse_linear if packed.operator == "SparseLinear" else sparse_conv)(x, packed, *rest)


def bound(packed: Packed, x: np.ndarray) -> float:
    """Largest rounding error of a dot product of random signs, summed in any order."""
    longest = max(1, int(np.diff(packed.tensors[1]).max()))
    values = float(np.abs(unpack(packed)).max())
    return EPSILON * (8 + 2 * longest**0.5) * (1 + values * float(np.abs(x).max()) * longest**0.5)


def close(got: np.ndarray, want: np.ndarray, tolerance: float) -> bool:
    return got.shape == want.shape and bool(np.abs(got - want).max(initial=0.0) <= tolerance)


def check(kernel: str, packed: Packed, x: np.ndarray, *, ends: bool = True, threads: int = 1) -> None:
    native = Kernel(packed, kernel)
    bias = normal((packed.shape[0],), 2) if ends else None
    residual = normal(native.output_shape(x), 3) if ends else None
    for activation in ACTIVATIONS if ends else ("none",):
        got = native.run(x, bias, residual, activation, threads, BOUNDS)
        want = reference(packed, x, bias, residual, activation, BOUNDS)
        assert close(got, want, bound(packed, x)), activation


def test_table_lists_scalar_first_and_best_last() -> None:
    assert KERNELS[0] == "scalar"
    assert list(library.kernels())[: len(KERNELS)] == KERNELS


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_linear_batches(kernel: str, batch: int) -> None:
    packed = pack_linear(sparse((77, 203), 0.2))
    check(kernel, packed, normal((batch, 203)), threads=1 + batch % 3)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (15, 31), (17, 33), (130, 500), (3, 1100)])
def test_linear_shapes_and_densities(kernel: str, shape: tuple[int, int], density: float) -> None:
    packed = pack_linear(sparse(shape, density))
    for batch in (1, 5, 12, 50):
        check(kernel, packed, normal((batch, shape[1])), ends=False, threads=2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("shape", [(77, 203), (130, 500), (15, 31), (16, 1100)])
def test_linear_in_blocks(kernel: str, layout: str, shape: tuple[int, int]) -> None:
    for density in (0.02, 0.25):
        packed = pack_linear(blocks(shape, density, block_rows(layout)), layout=layout)
        for batch in (1, 2, 5, 6, 7, 16, 17, 40, 64, 70):
            check(kernel, packed, normal((batch, shape[1])), ends=batch in (1, 7), threads=1 + batch % 3)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_linear_with_sixteen_bit_weights(kernel: str, layout: str, dtype: str) -> None:
    packed = pack_linear(blocks((45, 120), 0.2, block_rows(layout)), layout=layout, dtype=dtype)
    for batch in (1, 2, 3, 6, 30):
        check(kernel, packed, normal((batch, 120)), ends=False)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_blocks_store_zeros_that_change_nothing(kernel: str, layout: str) -> None:
    weight = sparse((40, 120), 0.2)
    for batch in (1, 20):
        x = normal((batch, 120))
        packed = pack_linear(weight, layout=layout)
        assert close(Kernel(packed, kernel).run(x), reference(packed, x), bound(packed, x))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", ["csr", "blocks-16"])
def test_linear_with_wide_columns(kernel: str, layout: str) -> None:
    packed = pack_linear(sparse((5, 70_001), 0.01), layout=layout)
    assert packed.tensors[2].dtype == np.int32
    for batch in (1, 3, 20):
        check(kernel, packed, normal((batch, 70_001)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_linear_with_empty_and_uneven_rows(kernel: str) -> None:
    weight = sparse((40, 300), 0.1)
    weight[:16] = 0
    weight[20] = normal((300,))
    weight[25:30] = 0
    packed = pack_linear(weight)
    for batch in (1, 6, 40, 130):
        for threads in (1, 2, 3):
            check(kernel, packed, normal((batch, 300)), threads=threads)


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_rows_and_leading_dimensions(kernel: str) -> None:
    packed = pack_linear(sparse((8, 24), 0.3))
    assert Kernel(packed, kernel).run(np.zeros((0, 24), np.float32)).shape == (0, 8)
    check(kernel, packed, normal((3, 7, 24)))


CONVOLUTIONS = [
    # (batch, in, height, width), (out, kh, kw), strides, pads, dilations
    ((2, 4, 5, 7), (3, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((1, 16, 14, 14), (20, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((5, 16, 8, 8), (8, 1, 1), (2, 2), (0, 0, 0, 0), (1, 1)),
    ((3, 5, 9, 11), (17, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((2, 5, 9, 11), (17, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1)),
    ((2, 4, 14, 14), (8, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((2, 4, 13, 15), (8, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((1, 4, 20, 23), (8, 7, 5), (3, 2), (2, 0, 1, 3), (1, 2)),
    ((9, 16, 8, 9), (8, 2, 3), (1, 1), (0, 0, 0, 0), (2, 1)),
    ((20, 40, 7, 7), (33, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((4, 3, 4, 4), (5, 3, 3), (4, 4), (2, 2, 0, 0), (1, 1)),
    ((2, 3, 1, 40), (6, 1, 5), (1, 3), (0, 2, 0, 2), (1, 3)),
    ((2, 3, 3, 3), (4, 2, 2), (2, 2), (5, 5, 5, 5), (1, 1)),
    ((1, 20, 4, 4), (9, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((9, 20, 4, 4), (9, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((11, 6, 2, 2), (5, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((40, 5, 1, 1), (7, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 5, 6, 7), (7, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    ((2, 5, 8, 8), (7, 3, 3), (1, 1), (2, 2, 2, 2), (2, 2)),
    ((1, 4, 6, 70), (8, 3, 3), (2, 2), (1, 1, 1, 1), (1, 1)),
    ((1, 4, 5, 67), (8, 3, 5), (1, 2), (1, 2, 1, 2), (1, 1)),
    ((2, 4, 6, 20), (8, 3, 3), (2, 1), (1, 1, 1, 1), (1, 1)),
    ((1, 4, 5, 24), (8, 3, 3), (1, 1), (0, 0, 2, 2), (1, 1)),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", range(len(CONVOLUTIONS)))
def test_convolutions(kernel: str, case: int) -> None:
    shape, (out, kh, kw), strides, pads, dilations = CONVOLUTIONS[case]
    weight = sparse((out, shape[1], kh, kw), 0.3)
    packed = pack_conv(weight, strides=strides, pads=pads, dilations=dilations)
    for threads in (1, 2, 3):
        check(kernel, packed, normal(shape), threads=threads)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("case", [1, 3, 6, 9, 14])
def test_convolutions_in_blocks(kernel: str, layout: str, case: int) -> None:
    shape, (out, kh, kw), strides, pads, dilations = CONVOLUTIONS[case]
    weight = blocks((out, shape[1], kh, kw), 0.3, block_rows(layout))
    packed = pack_conv(weight, strides=strides, pads=pads, dilations=dilations, layout=layout)
    for threads in (1, 3):
        check(kernel, packed, normal(shape), threads=threads)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 3, 7, 7), (1, 3, 9, 33)])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_hides_neighbouring_pixels(kernel: str, shape: tuple[int, ...], stride: int) -> None:
    packed = pack_conv(sparse((8, 3, 3, 3), 0.4), strides=(stride, stride), pads=(1, 1, 1, 1))
    native = Kernel(packed, kernel)
    for y, x_at in ((0, 0), (shape[2] // 2, shape[3] - 1), (shape[2] - 1, shape[3] // 2)):
        x = normal(shape)
        x[-1, 1, y, x_at] = np.nan
        want = np.isnan(sparse_conv(x, packed))
        assert want.any() and not want.all()
        assert np.array_equal(np.isnan(native.run(x)), want)


@pytest.mark.parametrize("kernel", KERNELS)
def test_too_small_an_image_is_refused(kernel: str) -> None:
    native = Kernel(pack_conv(sparse((2, 3, 3, 3), 0.5)), kernel)
    with pytest.raises(RuntimeLibraryError, match="smaller"):
        native.run(np.zeros((1, 3, 2, 5), np.float32))


@pytest.mark.parametrize("geometry", [{"strides": (0, 1)}, {"pads": (-1, 0, 0, 0)}, {"dilations": (1, 0)}])
def test_impossible_geometry_is_refused(geometry: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(RuntimeLibraryError, match="impossible convolution"):
        Kernel(pack_conv(sparse((2, 3, 3, 3), 0.5), **geometry))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch", [1, 4, 20, 64])
def test_non_finite_inputs_reach_only_the_rows_that_use_them(kernel: str, batch: int) -> None:
    packed = pack_linear(sparse((50, 100), 0.2))
    x = normal((batch, 100))
    x[0, 3], x[0, 40], x[-1, 99] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        want = sparse_linear(x, packed)
    got = Kernel(packed, kernel).run(x)
    assert np.isfinite(want).any() and not np.isfinite(want).all()
    finite = np.isfinite(want)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.array_equal(got[~finite], want[~finite], equal_nan=True)
    assert close(got[finite], want[finite], bound(packed, np.nan_to_num(x, posinf=0, neginf=0)))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "clip"])
def test_activations_over_their_whole_range(kernel: str, batch: int, activation: str) -> None:
    packed = pack_linear(np.eye(64, dtype=np.float32))
    x = np.linspace(-30, 30, batch * 64, dtype=np.float32).reshape(batch, 64)
    x.flat[:4] = (0.0, 1e-6, -1e-6, 1e4)
    got = Kernel(packed, kernel).run(x, activation=activation, bounds=BOUNDS)
    want = sparse_linear(x, packed, activation=activation, bounds=BOUNDS)
    assert (np.abs(got - want) <= 4 * EPSILON * np.maximum(1, np.abs(x))).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("batch", [1, 20])
def test_a_perturbed_weight_breaks_the_comparison(kernel: str, batch: int) -> None:
    weight = sparse((32, 96), 0.3)
    x = normal((batch, 96))
    row, column = (int(i[0]) for i in np.nonzero(weight))
    changed = weight.copy()
    changed[row, column] *= 1.01
    packed = pack_linear(weight)
    want, got = sparse_linear(x, packed), Kernel(pack_linear(changed), kernel).run(x)
    assert not close(got, want, bound(packed, x))


def test_the_environment_forces_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack_linear(sparse((4, 8), 0.5))
    monkeypatch.setenv("SPARSIFY_KERNEL", "nonsense")
    with pytest.raises(RuntimeLibraryError, match="nonsense"):
        Kernel(packed)
    monkeypatch.setenv("SPARSIFY_KERNEL", "scalar")
    assert Kernel(packed).run(normal((2, 8))).shape == (2, 4)
