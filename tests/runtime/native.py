"""Runs the kernels of one instruction set through the C ABI."""

from __future__ import annotations

import ctypes

import numpy as np

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library
from sparsify.runtime.layouts import Packed, tensor_structures
from sparsify.runtime.reference import ACTIVATIONS


def supported_kernels() -> list[str]:
    return [name for name, supported in library.kernels().items() if supported]


def _check(status: int) -> None:
    if status:
        raise RuntimeLibraryError(library.last_error(library.load()))


def _address(array: np.ndarray | None) -> int | None:
    if array is None:
        return None
    assert array.dtype == np.float32 and array.flags.c_contiguous
    return array.ctypes.data


def conv_attributes(packed: Packed) -> library.ConvAttributes:
    a = packed.attributes
    return library.ConvAttributes(
        a["out_channels"],
        a["in_channels"],
        (ctypes.c_int64 * 2)(*a["kernel_shape"]),
        (ctypes.c_int64 * 2)(*a["strides"]),
        (ctypes.c_int64 * 4)(*a["pads"]),
        (ctypes.c_int64 * 2)(*a["dilations"]),
    )


class Kernel:
    """A native kernel made from packed tensors; freed with the object."""

    def __init__(self, packed: Packed, kernel: str | None = None) -> None:
        self.packed = packed
        self.native = library.load()
        self.kind = "linear" if packed.operator == "SparseLinear" else "conv"
        self.handle = ctypes.c_void_p()
        structures = tensor_structures(packed.tensors)
        name = None if kernel is None else kernel.encode()
        tail = (structures, len(structures), ctypes.byref(self.handle))
        if self.kind == "linear":
            shape = (packed.attributes["out_features"], packed.attributes["in_features"])
            _check(self.native.sparsify_linear_create(packed.layout.encode(), name, *shape, *tail))
        else:
            geometry = ctypes.byref(conv_attributes(packed))
            _check(self.native.sparsify_conv_create(packed.layout.encode(), name, geometry, *tail))

    def __del__(self) -> None:
        if self.handle:
            getattr(self.native, f"sparsify_{self.kind}_free")(self.handle)

    def output_shape(self, x: np.ndarray) -> tuple[int, ...]:
        if self.kind == "linear":
            return (*x.shape[:-1], self.packed.shape[0])
        height, width = ctypes.c_int64(), ctypes.c_int64()
        outputs = (ctypes.byref(height), ctypes.byref(width))
        _check(self.native.sparsify_conv_output_size(self.handle, *x.shape[2:], *outputs))
        return x.shape[0], self.packed.shape[0], height.value, width.value

    def run(
        self,
        x: np.ndarray,
        bias: np.ndarray | None = None,
        residual: np.ndarray | None = None,
        activation: str = "none",
        threads: int = 1,
        bounds: tuple[float, float] = (0.0, 6.0),
        guard: int = 64,
    ) -> np.ndarray:
        """Runs with sentinels around the output, and checks that they survive."""
        shape = self.output_shape(x)
        size = int(np.prod(shape, dtype=np.int64))
        memory = np.full(size + 2 * guard, 12345.0, np.float32)
        y = memory[guard : guard + size]
        if size:
            y[:] = np.nan
        options = library.RunOptions(
            _address(bias), _address(residual), ACTIVATIONS.index(activation), threads, *bounds
        )
        sizes = (x.size // x.shape[-1],) if self.kind == "linear" else (x.shape[0], *x.shape[2:])
        function = getattr(self.native, f"sparsify_{self.kind}_run")
        _check(function(self.handle, _address(x), *sizes, ctypes.byref(options), _address(y)))
        assert (memory[:guard] == 12345.0).all() and (memory[guard + size :] == 12345.0).all()
        return y.reshape(shape)
