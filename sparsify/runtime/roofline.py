"""How fast a machine could be: the rate of its multiplications, and of reading weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from sparsify.runtime.session import Session

_SIDE = 512
_REPEATS = 15
_PASSES = 4
_SMALLEST, _LARGEST = 4 << 20, 64 << 20


@dataclass(frozen=True)
class Roofline:
    """Two ceilings of a machine.

    Attributes:
        gflops: 10⁹ floating-point operations a second (a multiply-add is two).
        gbytes: 10⁹ bytes a second.
        threads: Threads that both were measured on.
        how: How, in a sentence.
    """

    gflops: float
    gbytes: float
    threads: int
    how: str

    def seconds(self, flops: float, size: float) -> float:
        """The least time in which so many FLOPs over so many bytes can be done."""
        return max(flops / (1e9 * self.gflops), size / (1e9 * self.gbytes))

    def bound(self, flops: float, size: float) -> str:
        """Which ceiling that is: "compute" or "memory"."""
        return "compute" if flops / self.gflops >= size / self.gbytes else "memory"

    def to_dict(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return asdict(self)


def measure_roofline(threads: int, weight_bytes: int) -> Roofline:
    """Measures both ceilings on this machine, in a fraction of a second.

    They are what code reaches here, not what the data sheet says: ONNX Runtime's own product of two large
    matrices, and NumPy reading as many bytes as the model's weights have, over and over, so that they come
    from the cache or memory that the weights come from.

    Args:
        threads: Threads to measure on.
        weight_bytes: Bytes of a model's weights; at least 4 MB and at most 64 MB are read.
    """
    size = min(max(weight_bytes, _SMALLEST), _LARGEST)
    how = (
        f"measured on {threads} thread{'s' if threads > 1 else ''}, best of {_REPEATS}: ONNX Runtime's "
        f"product of two matrices of {_SIDE}×{_SIDE}, and reading {size >> 20} MB over and over"
    )
    return Roofline(_product_rate(threads), _read_rate(threads, size), threads, how)


def _product_rate(threads: int) -> float:
    info = helper.make_tensor_value_info
    matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [info("x", TensorProto.FLOAT, matrix.shape)],
        [info("y", TensorProto.FLOAT, matrix.shape)],
        [numpy_helper.from_array(matrix, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = Session(model.SerializeToString(), threads=threads)
    binding = session.io_binding()
    binding.bind_cpu_input("x", matrix)
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(matrix)))
    return 2e-9 * _SIDE**3 / _least(lambda: session.run_with_iobinding(binding))


def _read_rate(threads: int, size: int) -> float:
    parts = [np.ones(size // threads // 4, np.float32) for _ in range(threads)]

    def read(part: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        for _ in range(_PASSES):
            part.max()

    with ThreadPoolExecutor(threads) as pool:
        seconds = _least(lambda: list(pool.map(read, parts)))
    return 1e-9 * _PASSES * size / seconds


def _least(call: Callable[[], object]) -> float:
    best = float("inf")
    call()
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
