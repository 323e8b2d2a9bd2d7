"""Times callables against each other.

Thread pools keep spinning for a while after a call, so on few cores single calls in turn disturb each other.
Blocks of calls alternate instead, with a pause before each, and every block starts with calls that are not
counted. The order within a round is reversed every time, so that a drift of the machine favours nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Timing:
    """Durations of the calls of one callable.

    Attributes:
        samples: Seconds of every counted call, in order.
    """

    samples: NDArray[np.float64]

    @property
    def median(self) -> float:
        """Seconds that half of the calls stay below."""
        return self.percentile(50)

    @property
    def mean(self) -> float:
        """Arithmetic mean in seconds."""
        return float(self.samples.mean())

    @property
    def std(self) -> float:
        """Standard deviation in seconds."""
        return float(self.samples.std())

    @property
    def spread(self) -> float:
        """Interquartile range over the median: how far to trust the median."""
        return (self.percentile(75) - self.percentile(25)) / self.median

    def percentile(self, q: float) -> float:
        """Seconds that `q` per cent of the calls stay below."""
        return float(np.percentile(self.samples, q))

    def latency_ms(self) -> dict[str, float]:
        """The figures of a report, in milliseconds."""
        figures = {f"p{q}": self.percentile(q) for q in (50, 90, 95, 99)}
        return {name: 1e3 * value for name, value in (figures | {"mean": self.mean, "std": self.std}).items()}


def interleave(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    warmup: int = 5,
    pause: float = 0.05,
    block: float = 0.25,
    minimum: int = 9,
) -> list[Timing]:
    """Times callables in alternating blocks.

    Args:
        calls: What to time; two or more to compare.
        seconds: Time for each callable, warm-up left out.
        warmup: Calls of each callable before anything is counted.
        pause: Seconds of sleep before each block.
        block: Seconds of one block; at most a third of `seconds`, so that blocks do alternate.
        minimum: Counted calls of each callable, however long they take.

    Returns:
        One timing per callable, in the order given.
    """
    for call in calls:
        for _ in range(warmup):
            call()
    length = min(block, seconds / 3)
    samples: list[list[float]] = [[] for _ in calls]
    spent = [0.0] * len(calls)
    order = list(range(len(calls)))
    while min(spent) < seconds or min(map(len, samples)) < minimum:
        for index in order:
            time.sleep(pause)
            durations = _block(calls[index], length)
            samples[index].extend(durations)
            spent[index] += sum(durations)
        order.reverse()
    return [Timing(np.array(durations)) for durations in samples]


def _block(call: Callable[[], object], length: float) -> list[float]:
    settled = time.perf_counter() + length / 10
    while True:
        call()
        start = time.perf_counter()
        if start > settled:
            break
    end = start + length
    durations = []
    while start < end:
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return durations
