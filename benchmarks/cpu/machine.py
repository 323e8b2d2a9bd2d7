"""How fast this machine can multiply and read: the ceilings that the tables name.

Rates come from a small C file that is compiled here for this processor, run on as many threads as asked, the
best of several times: other processes only ever take away. Without a C compiler ONNX Runtime's own product of
two matrices and NumPy's reading stand in, and nothing is said of load ports.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np

from sparsify.runtime.roofline import measure_roofline

SOURCE = Path(__file__).with_name("probe.c")
_CACHES = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NEAR, _FAR = (16 << 10, 384 << 10), (4 << 20, 16 << 20, 64 << 20, 256 << 20)
_CHAINS = 12
_SAMPLE = 4e-3
_REPEATS = 15


@dataclass(frozen=True)
class Machine:
    """Ceilings of so many threads together.

    Attributes:
        threads: Threads.
        peak: 10⁹ floating-point operations a second; a multiply-add is two.
        loads: 10⁹ loads of whole registers a second out of the first cache; None where that is unknown.
        vector: Bytes of a register.
        reads: Bytes that all threads read over and over, and 10⁹ bytes a second at which they come.
        caches: Bytes of one core's L1 and L2, and of the L3.
        how: How it was measured.
    """

    threads: int
    peak: float
    loads: float | None
    vector: int
    reads: tuple[tuple[int, float], ...]
    caches: Mapping[str, int]
    how: str

    def level(self, size: int) -> str:
        """Where so many bytes, divided over the threads, come from when they are read over and over."""
        for name, share in (("L1", self.threads), ("L2", self.threads), ("L3", 1)):
            if size <= share * self.caches[name]:
                return name
        return "memory"

    def bandwidth(self, size: int) -> float:
        """10⁹ bytes a second at which so many bytes are read: of the nearest size measured in that level."""
        level = self.level(size)
        among = [entry for entry in self.reads if self.level(entry[0]) == level] or self.reads
        return min(among, key=lambda entry: abs(math.log(entry[0] / max(1, size))))[1]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """What `to_json` made."""
        reads = tuple((int(size), float(rate)) for size, rate in data["reads"])
        return cls(**{**data, "reads": reads})


def measure(threads: int) -> Machine:
    """Measures the ceilings, in about a second.

    Args:
        threads: Threads that multiply and read at once.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        if compiler is not None:
            library = Path(folder) / "probe.so"
            options = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
            subprocess.run([compiler, *options, str(SOURCE), "-o", str(library)], check=True, timeout=60)
            return _probed(ctypes.CDLL(str(library)), threads)
    found = {size: measure_roofline(threads, size) for size in _FAR[:3]}
    reads = tuple((size, roofline.gbytes) for size, roofline in found.items())
    peak = max(roofline.gflops for roofline in found.values())
    return Machine(threads, peak, None, 32, reads, caches(), found[_FAR[0]].how)


def caches() -> dict[str, int]:
    """Bytes of the first core's data caches as Linux tells them; common ones elsewhere."""
    found = dict(_CACHES)
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction" and size[-1:] in _UNITS:
            found[f"L{level}"] = int(size[:-1]) * _UNITS[size[-1]]
    return found


def _probed(library: ctypes.CDLL, threads: int) -> Machine:
    library.multiply_add.restype = ctypes.c_float
    library.multiply_add.argtypes = (ctypes.c_int64,)
    library.read_all.restype = ctypes.c_int64
    library.read_all.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    vector = int(library.vector_bytes())
    with ThreadPoolExecutor(threads) as pool:
        rounds = _fastest(pool, threads, lambda _, count: library.multiply_add(count))
        reads = []
        for size in (*(threads * near for near in _NEAR), *_FAR):
            part = size // threads // 512 * 512
            buffers = [_aligned(part) for _ in range(threads)]
            passes = _fastest(pool, threads, lambda i, n: library.read_all(buffers[i].ctypes.data, part, n))  # noqa: B023
            reads.append((size, 1e-9 * passes * part * threads))
    peak = 1e-9 * rounds * threads * _CHAINS * 2 * vector / 4
    how = f"vectors of {8 * vector} bits, best of {_REPEATS}, {threads} thread{'s' if threads > 1 else ''}"
    return Machine(threads, peak, reads[0][1] / vector, vector, tuple(reads), caches(), how)


def _fastest(pool: ThreadPoolExecutor, threads: int, work: Callable[[int, int], object]) -> float:
    """Most repetitions a second that a thread does in the mean while all of them work.

    Args:
        pool: As many threads.
        threads: How many.
        work: Called with the thread's number and how often to repeat.
    """
    together = Barrier(threads)

    def seconds(thread: int, count: int) -> float:
        together.wait()
        start = time.perf_counter()
        work(thread, count)
        return time.perf_counter() - start

    def times(count: int) -> list[float]:
        return list(pool.map(seconds, range(threads), [count] * threads))

    count = 1
    while (taken := min(min(times(count)) for _ in range(3))) < _SAMPLE:
        count = max(2 * count, int(1.2 * count * _SAMPLE / max(taken, 1e-6)))
    return max(sum(count / taken for taken in times(count)) / threads for _ in range(_REPEATS))


def _aligned(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    whole = np.ones(size + 64, np.uint8)  # written, as untouched pages are all one page of zeros
    start = -whole.ctypes.data % 64
    return whole[start : start + size]
