"""The training kernels' binding: what it refuses, and what it runs on."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import library, training


def topology(positions, out=3, features=4, **options):
    array = np.array(positions, dtype=np.int64)
    return training.LinearTopology(out, features, array.ctypes.data, len(array), threads=1, **options)


@pytest.mark.parametrize("positions", [[1, 1], [2, 1], [-1], [12]])
def test_positions_must_ascend_inside_the_weight(positions):
    with pytest.raises(RuntimeLibraryError, match="ascend"):
        topology(positions)


def test_an_unknown_kernel_is_named():
    with pytest.raises(RuntimeLibraryError, match=r"there are.*scalar"):
        topology([0], kernel="abacus")


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kernel", [name for name, here in library.kernels().items() if here])
def test_all_instruction_sets_agree_on_threads_of_their_own(kernel, threads):
    training.use_openmp(None)
    draw = np.random.default_rng(0)
    out, features, batch = 300, 90, 70
    mask = draw.random((out, features)) < 0.2
    weight = (draw.standard_normal((out, features)) * mask).astype(np.float32)
    x, dy = (draw.standard_normal((batch, n)).astype(np.float32) for n in (features, out))
    positions = np.flatnonzero(mask)
    layer = training.LinearTopology(
        out, features, positions.ctypes.data, len(positions), threads=threads, kernel=kernel
    )
    values = np.empty(len(positions), np.float32)
    y, dx, dweight = np.empty_like(dy), np.empty_like(x), np.full_like(weight, np.nan)
    layer.gather(weight.ctypes.data, values.ctypes.data, threads)
    layer.forward(x.ctypes.data, (batch,), values.ctypes.data, None, y.ctypes.data, threads)
    layer.backward(
        x.ctypes.data,
        (batch,),
        dy.ctypes.data,
        values.ctypes.data,
        dx=dx.ctypes.data,
        dweight=dweight.ctypes.data,
        dbias=None,
        threads=threads,
    )
    np.testing.assert_allclose(y, x @ weight.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, dy @ weight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dweight, (dy.T @ x) * mask, rtol=1e-4, atol=1e-4)


def test_an_older_library_is_named(monkeypatch):
    class Older:
        pass

    monkeypatch.setattr(library, "load", Older)
    training._declared.cache_clear()
    with pytest.raises(RuntimeLibraryError, match="older than this package"):
        topology([0])
    training._declared.cache_clear()
