"""Training kernels of the native library: layers whose topology stays while their values change.

Arrays are handed over by address, so this module knows neither torch nor NumPy. Callers keep them alive, of
32-bit floats, contiguous and of the sizes named.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from ctypes import c_char_p, c_int32, c_int64, c_void_p
from typing import Any

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library

Pair = tuple[int, int]
_HANDLE = ctypes.POINTER(c_void_p)
_Signature = tuple[type | None, tuple[type, ...]]
_POOL: dict[str, _Signature] = {"use_openmp": (None, (c_void_p,))}


def _of_layer(kind: str, shape: tuple[type, ...], batch: int) -> dict[str, _Signature]:
    sizes = (c_int64,) * batch
    gradients = (c_void_p, c_void_p, c_void_p)
    return {
        f"{kind}_create": (c_int32, (c_char_p, *shape, c_void_p, c_int64, c_int32, _HANDLE)),
        f"{kind}_free": (None, (c_void_p,)),
        f"{kind}_gather": (c_int32, (c_void_p, c_void_p, c_void_p, c_int32)),
        f"{kind}_forward": (
            c_int32,
            (c_void_p, c_void_p, *sizes, c_void_p, c_void_p, c_void_p, c_int32),
        ),
        f"{kind}_backward": (
            c_int32,
            (c_void_p, c_void_p, *sizes, c_void_p, c_void_p, *gradients, c_int32, c_int32),
        ),
    }


_SIGNATURES: dict[str, dict[str, _Signature]] = {
    "pool": _POOL,
    "linear": _of_layer("linear", (c_int64, c_int64), 1),
    "conv": _of_layer("conv", (ctypes.POINTER(library.ConvAttributes),), 3),
}


@functools.cache
def _declared(path: str, kind: str) -> ctypes.CDLL:
    native = library.load()
    for name, (result, arguments) in _SIGNATURES[kind].items():
        function = getattr(native, f"sparsify_train_{name}", None)
        if function is None:
            raise RuntimeLibraryError(
                f"{path} lacks sparsify_train_{name}, so it is older than this package: install the package "
                "again with `pip install .`"
            )
        function.restype, function.argtypes = result, arguments
    return native


def _native(kind: str) -> ctypes.CDLL:
    return _declared(str(library.library_path()), kind)


def use_openmp(gomp_parallel: int | None) -> None:
    """Runs the tasks of all later calls on an OpenMP pool.

    A second pool of threads beside one whose threads wait by spinning, as those of OpenMP do for a while
    after each region, would share the cores with it.

    Args:
        gomp_parallel: Address of that library's `GOMP_parallel`; None for threads of their own.
    """
    _native("pool").sparsify_train_use_openmp(gomp_parallel)


class Topology:
    """The active positions of a layer's weight, with the plans by which its products run.

    What a batch is, one number or several, depends on the layer.

    Attributes:
        count: Active positions.
    """

    kind = ""

    def __init__(
        self, shape: tuple[Any, ...], positions: int, count: int, threads: int, kernel: str | None
    ) -> None:
        self.count = count
        self._library = _native(self.kind)
        gather, forward, backward, create, free = (
            getattr(self._library, f"sparsify_train_{self.kind}_{name}")
            for name in ("gather", "forward", "backward", "create", "free")
        )
        self._gather, self._forward, self._backward = gather, forward, backward
        handle = c_void_p()
        name = None if kernel is None else kernel.encode()
        self._check(create(name, *shape, positions, count, threads, ctypes.byref(handle)))
        self._handle = handle
        weakref.finalize(self, free, handle)

    def gather(self, weight: int, values: int, threads: int) -> None:
        """Brings the active values of a weight into this object's order.

        Args:
            weight: Address of the weight.
            values: Address of `count` floats; written.
            threads: That take part.
        """
        self._check(self._gather(self._handle, weight, values, threads))

    def forward(
        self, x: int, batch: tuple[int, ...], values: int, bias: int | None, y: int, threads: int
    ) -> None:
        """The layer's output.

        Args:
            x: Address of the input.
            batch: Its sizes.
            values: Address of what `gather` wrote.
            bias: Address of the bias, or None.
            y: Address of the output; written.
            threads: That take part.
        """
        self._check(self._forward(self._handle, x, *batch, values, bias, y, threads))

    def backward(
        self,
        x: int,
        batch: tuple[int, ...],
        dy: int,
        values: int,
        *,
        dx: int | None,
        dweight: int | None,
        dbias: int | None,
        threads: int,
        zeroed: bool = False,
    ) -> None:
        """Gradients of `forward`; each is an address to write to, or None where it is not wanted.

        Args:
            x: Address of the input.
            batch: Its sizes.
            dy: Address of the gradient of the output.
            values: Address of what `gather` wrote.
            dx: Like the input.
            dweight: Like the weight; zero outside the active positions.
            dbias: Like the bias; only beside `dweight`.
            threads: That take part.
            zeroed: Whether `dweight` is zero outside the active positions already: only these are written.
        """
        self._check(self._backward(self._handle, x, *batch, dy, values, dx, dweight, dbias, threads, zeroed))

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeLibraryError(library.last_error(self._library))


class LinearTopology(Topology):
    """That of a linear layer: y [batch, out] = x [batch, in] · weightᵀ + bias.

    Args:
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        positions: Address of `count` 64-bit integers, row · in_features + column, ascending; copied.
        count: Active positions.
        threads: As many as will mostly run it.
        kernel: Instruction set by name; the best one of this CPU by default.

    Raises:
        RuntimeLibraryError: The library is missing or older, or positions do not ascend inside the weight.
    """

    kind = "linear"

    def __init__(
        self,
        out_features: int,
        in_features: int,
        positions: int,
        count: int,
        *,
        threads: int,
        kernel: str | None = None,
    ) -> None:
        super().__init__((out_features, in_features), positions, count, threads, kernel)


class ConvTopology(Topology):
    """That of a two-dimensional convolution: images [batch, in, height, width], a batch being (batch, height,
    width).

    Args:
        weight: Sizes of the weight [out, in, kernel height, kernel width].
        strides: Vertical, horizontal.
        padding: Above and below, left and right.
        dilations: Vertical, horizontal.
        positions: Address of `count` 64-bit integers, indices into the flat weight, ascending; copied.
        count: Active positions.
        threads: As many as will mostly run it.
        kernel: Instruction set by name; the best one of this CPU by default.

    Raises:
        RuntimeLibraryError: The library is missing or older, there is no such convolution, or positions do
            not ascend inside the weight.
    """

    kind = "conv"

    def __init__(
        self,
        weight: tuple[int, int, int, int],
        strides: Pair,
        padding: Pair,
        dilations: Pair,
        positions: int,
        count: int,
        *,
        threads: int,
        kernel: str | None = None,
    ) -> None:
        out, channels, height, width = weight
        attributes = library.ConvAttributes(
            out, channels, (height, width), strides, padding + padding, dilations
        )
        super().__init__((ctypes.byref(attributes),), positions, count, threads, kernel)
