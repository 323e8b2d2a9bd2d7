"""Training kernels of the native library: layers whose topology stays while their values change.

Arrays are handed over by address, so this module knows neither torch nor NumPy. Callers keep them alive, of
32-bit floats, contiguous and of the sizes named.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from ctypes import c_char_p, c_int32, c_int64, c_void_p

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library

_HANDLE = ctypes.POINTER(c_void_p)
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "use_openmp": (None, (c_void_p,)),
    "linear_create": (c_int32, (c_char_p, c_int64, c_int64, c_void_p, c_int64, c_int32, _HANDLE)),
    "linear_free": (None, (c_void_p,)),
    "linear_gather": (c_int32, (c_void_p, c_void_p, c_void_p, c_int32)),
    "linear_forward": (c_int32, (c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_int32)),
    "linear_backward": (
        c_int32,
        (c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int32, c_int32),
    ),
}


@functools.cache
def _declared(path: str) -> ctypes.CDLL:
    native = library.load()
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(native, f"sparsify_train_{name}", None)
        if function is None:
            raise RuntimeLibraryError(
                f"{path} lacks sparsify_train_{name}, so it is older than this package: install the package "
                "again with `pip install .`"
            )
        function.restype, function.argtypes = result, arguments
    return native


def _native() -> ctypes.CDLL:
    return _declared(str(library.library_path()))


def use_openmp(gomp_parallel: int | None) -> None:
    """Runs the tasks of all later calls on an OpenMP pool.

    A second pool of threads beside one whose threads wait by spinning, as those of OpenMP do for a while
    after each region, would share the cores with it.

    Args:
        gomp_parallel: Address of that library's `GOMP_parallel`; None for threads of their own.
    """
    _native().sparsify_train_use_openmp(gomp_parallel)


class LinearTopology:
    """The active positions of a weight, with the plans by which its products run.

    Args:
        out_features: Rows of the weight.
        in_features: Columns of the weight.
        positions: Address of `count` 64-bit integers, row · in_features + column, ascending; copied.
        count: Active positions.
        threads: As many as will mostly run it.
        kernel: Instruction set by name; the best one of this CPU by default.

    Attributes:
        count: Active positions.

    Raises:
        RuntimeLibraryError: The library is missing or older, or positions do not ascend inside the weight.
    """

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
        self.count = count
        self._library = _native()
        handle = c_void_p()
        name = None if kernel is None else kernel.encode()
        self._check(
            self._library.sparsify_train_linear_create(
                name, out_features, in_features, positions, count, threads, ctypes.byref(handle)
            )
        )
        self._handle = handle
        weakref.finalize(self, self._library.sparsify_train_linear_free, handle)

    def gather(self, weight: int, values: int, threads: int) -> None:
        """Brings the active values of a weight [out, in] into this object's order.

        Args:
            weight: Address of the weight.
            values: Address of `count` floats; written.
            threads: That take part.
        """
        self._check(self._library.sparsify_train_linear_gather(self._handle, weight, values, threads))

    def forward(self, x: int, batch: int, values: int, bias: int | None, y: int, threads: int) -> None:
        """y [batch, out] = x [batch, in] · weightᵀ + bias [out].

        Args:
            x: Address of the input.
            batch: Its rows.
            values: Address of what `gather` wrote.
            bias: Address of the bias, or None.
            y: Address of the output; written.
            threads: That take part.
        """
        self._check(
            self._library.sparsify_train_linear_forward(self._handle, x, batch, values, bias, y, threads)
        )

    def backward(
        self,
        x: int,
        batch: int,
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
            x: Address of the input [batch, in].
            batch: Its rows.
            dy: Address of the gradient of the output [batch, out].
            values: Address of what `gather` wrote.
            dx: [batch, in].
            dweight: [out, in]; zero outside the active positions.
            dbias: [out]; only beside `dweight`.
            threads: That take part.
            zeroed: Whether `dweight` is zero outside the active positions already: only these are written.
        """
        self._check(
            self._library.sparsify_train_linear_backward(
                self._handle, x, batch, dy, values, dx, dweight, dbias, threads, zeroed
            )
        )

    def _check(self, status: int) -> None:
        if status != 0:
            raise RuntimeLibraryError(library.last_error(self._library))
