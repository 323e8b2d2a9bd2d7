"""Packed weights: what a sparse operator stores instead of a dense weight.

Packing, checking and unpacking happen in the native library, so that Python and the kernels agree by
construction. `docs/design/packed-layouts.md` describes the layouts.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsify.errors import RuntimeLibraryError, UserError
from sparsify.runtime import library

Attribute = int | float | str | list[int]

LAYOUTS: tuple[str, ...] = ("csr", "blocks-2", "blocks-4", "blocks-8", "blocks-16")
"""All layouts. `csr` stores single weights; `blocks-R` stores R outputs of one input together."""

WEIGHT_DTYPES = ("float32", "bfloat16", "float16")
"""Number types that weights are stored in; sums are always float32."""

_ELEMENT_TYPES: dict[int, type[np.generic]] = {1: np.float32, 2: np.uint8, 4: np.uint16, 6: np.int32}
_ELEMENT_NUMBERS = {np.dtype(kind): number for number, kind in _ELEMENT_TYPES.items()}


@dataclass(frozen=True)
class Packed:
    """A packed weight and the attributes of the node that uses it.

    Attributes:
        operator: `SparseLinear` or `SparseConv`.
        layout: Name of the layout.
        shape: Shape of the dense weight: `[out, in]` or `[out, in, kh, kw]`.
        tensors: Packed tensors in operator input order, after X, bias and residual.
        attributes: Everything the node needs except its activation.
    """

    operator: str
    layout: str
    shape: tuple[int, ...]
    tensors: tuple[npt.NDArray[np.generic], ...]
    attributes: dict[str, Attribute]

    @property
    def nbytes(self) -> int:
        """Bytes that the packed tensors take in a file."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Rows and columns of the weight as a matrix: a convolution is `[out, in * kh * kw]`."""
        return self.shape[0], int(np.prod(self.shape[1:], dtype=np.int64))


def tensor_structures(tensors: Sequence[npt.NDArray[np.generic]]) -> ctypes.Array[library.Tensor]:
    """The tensors as the C ABI takes them; they must outlive the result.

    Raises:
        UserError: An element type that no layout uses.
    """
    structures = (library.Tensor * len(tensors))()
    for structure, tensor in zip(structures, tensors, strict=True):
        if tensor.dtype not in _ELEMENT_NUMBERS or not tensor.flags.c_contiguous:
            raise UserError(f"a packed tensor of type {tensor.dtype} cannot be used: pack the weight again")
        structure.data = tensor.ctypes.data
        structure.type = _ELEMENT_NUMBERS[tensor.dtype]
        structure.size = tensor.size
    return structures


def _check(status: int) -> None:
    if status:
        raise RuntimeLibraryError(library.last_error(library.load()))


def _pack(weight: npt.NDArray[np.float32], layout: str, dtype: str) -> tuple[npt.NDArray[np.generic], ...]:
    if dtype not in WEIGHT_DTYPES:
        raise UserError(f"weights are stored as {', '.join(WEIGHT_DTYPES)}, not {dtype!r}")
    native = library.load()
    matrix = np.ascontiguousarray(weight, dtype=np.float32).reshape(weight.shape[0], -1)
    handle = ctypes.c_void_p()
    _check(
        native.sparsify_pack(
            layout.encode(),
            matrix.ctypes.data,
            *matrix.shape,
            WEIGHT_DTYPES.index(dtype),
            ctypes.byref(handle),
        )
    )
    try:
        tensors = []
        for index in range(native.sparsify_packed_count(handle)):
            tensor = native.sparsify_packed_tensor(handle, index)
            kind = np.dtype(_ELEMENT_TYPES[tensor.type])
            content = ctypes.string_at(tensor.data, tensor.size * kind.itemsize)
            tensors.append(np.frombuffer(content, kind).copy())
    finally:
        native.sparsify_packed_free(handle)
    return tuple(tensors)


def _check_weight(weight: npt.NDArray[np.float32], dimensions: int, names: str) -> None:
    if weight.ndim != dimensions or weight.size == 0 or weight.dtype != np.float32:
        raise UserError(
            f"a weight of shape {list(weight.shape)} and type {weight.dtype} cannot be packed: "
            f"it must be a non-empty float32 {names}"
        )


def block_rows(layout: str) -> int:
    """Outputs that share a stored input: 1 for `csr`, R for `blocks-R`.

    Raises:
        UserError: No such layout.
    """
    if layout not in LAYOUTS:
        raise UserError(f"no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    return 1 if layout == "csr" else int(layout.removeprefix("blocks-"))


def stored(weight: npt.NDArray[np.float32], layout: str) -> int:
    """Weights that a layout stores: the non-zeros, and the zeros of blocks that are not zero as a whole.

    Args:
        weight: `[out, ...]`.
        layout: One of `LAYOUTS`.

    Raises:
        UserError: No such layout.
    """
    rows = block_rows(layout)
    occupied = weight.reshape(weight.shape[0], -1) != 0
    blocks = np.logical_or.reduceat(occupied, np.arange(0, weight.shape[0], rows))
    return rows * int(np.count_nonzero(blocks))


def pack_linear(weight: npt.NDArray[np.float32], *, layout: str = "csr", dtype: str = "float32") -> Packed:
    """Packs the non-zeros of a linear layer's weight.

    Args:
        weight: float32 `[out, in]`.
        layout: Name of the layout.
        dtype: One of `WEIGHT_DTYPES`, to which the weights are rounded.

    Raises:
        UserError: The weight has another shape or type.
        RuntimeLibraryError: No such layout, a weight too large for the type, or no native library.
    """
    _check_weight(weight, 2, "[out, in]")
    out, inputs = weight.shape
    attributes: dict[str, Attribute] = {"layout": layout, "out_features": out, "in_features": inputs}
    return Packed("SparseLinear", layout, (out, inputs), _pack(weight, layout, dtype), attributes)


def pack_conv(
    weight: npt.NDArray[np.float32],
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    layout: str = "csr",
    dtype: str = "float32",
) -> Packed:
    """Packs the non-zeros of a two-dimensional convolution's weight, groups = 1.

    Args:
        weight: float32 `[out, in, kh, kw]`.
        strides: Vertical and horizontal stride.
        pads: Zeros around the input in ONNX's order: top, left, bottom, right.
        dilations: Vertical and horizontal distance between the kernel's taps.
        layout: Name of the layout.
        dtype: One of `WEIGHT_DTYPES`, to which the weights are rounded.

    Raises:
        UserError: The weight or the geometry has another shape or type.
        RuntimeLibraryError: No such layout, a weight too large for the type, or no native library.
    """
    _check_weight(weight, 4, "[out, in, kh, kw]")
    if (len(strides), len(pads), len(dilations)) != (2, 4, 2):
        raise UserError("a convolution needs two strides, four pads and two dilations")
    attributes: dict[str, Attribute] = {
        "layout": layout,
        "out_channels": weight.shape[0],
        "in_channels": weight.shape[1],
        "kernel_shape": [int(extent) for extent in weight.shape[2:]],
        "strides": [int(stride) for stride in strides],
        "pads": [int(pad) for pad in pads],
        "dilations": [int(dilation) for dilation in dilations],
    }
    shape = tuple(int(extent) for extent in weight.shape)
    return Packed("SparseConv", layout, shape, _pack(weight, layout, dtype), attributes)


def unpack(packed: Packed) -> npt.NDArray[np.float32]:
    """The dense weight, in the shape it had before packing, rounded as it was stored.

    Raises:
        RuntimeLibraryError: The packed tensors are corrupt.
    """
    rows, columns = packed.matrix_shape
    structures = tensor_structures(packed.tensors)
    arguments = (packed.layout.encode(), structures, len(structures), rows, columns)
    native = library.load()
    _check(native.sparsify_unpack(*arguments, None))
    weight = np.empty(packed.shape, np.float32)
    _check(native.sparsify_unpack(*arguments, weight.ctypes.data))
    return weight
