from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from sparsify.runtime import timing
from sparsify.runtime.timing import Timing, interleave


class Clock:
    """Time that passes only where it is spent."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.log.append("pause")

    def call(self, name: str, *seconds: float):
        costs = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def run() -> None:
            self.now += next(costs)
            self.log.append(name)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=fake.perf_counter, sleep=fake.sleep))
    return fake


def test_each_callable_gets_its_own_times(clock: Clock):
    fast, slow = interleave([clock.call("a", 0.001), clock.call("b", 0.004)], seconds=0.5)
    assert fast.median == pytest.approx(0.001)
    assert slow.median == pytest.approx(0.004)
    assert fast.samples.sum() >= 0.5
    assert slow.samples.sum() >= 0.5


def test_blocks_alternate_with_a_pause_before_each_and_take_turns_to_start(clock: Clock):
    interleave([clock.call("a", 0.01), clock.call("b", 0.01)], seconds=1.0, warmup=0, block=0.1)
    blocks = [block.split() for block in " ".join(clock.log).split("pause")]
    assert blocks[0] == []
    assert all(len(set(block)) == 1 for block in blocks[1:])
    assert len(blocks) > 8
    starts = "".join(block[0] for block in blocks[1:])
    assert starts.startswith("abbaabba")


def test_the_first_calls_are_not_counted(clock: Clock):
    cold = clock.call("a", *[9.0] * 5, 0.01)
    (timed,) = interleave([cold], seconds=0.3, warmup=5)
    assert float(timed.samples.max()) == pytest.approx(0.01)
    assert clock.log[:6] == ["a"] * 5 + ["pause"]
    counted = len(timed.samples)
    assert counted < clock.log.count("a") - 5


def test_slow_callables_still_get_enough_samples(clock: Clock):
    timings = interleave([clock.call("a", 3.0), clock.call("b", 5.0)], seconds=0.1, warmup=1, minimum=4)
    assert [len(timed.samples) >= 4 for timed in timings] == [True, True]


def test_figures_are_those_of_the_samples():
    timed = Timing(np.arange(1, 102) / 1e3)
    figures = timed.latency_ms()
    assert set(figures) == {"p50", "p90", "p95", "p99", "mean", "std"}
    assert figures["p50"] == pytest.approx(51)
    assert figures["p99"] == pytest.approx(100)
    assert figures["mean"] == pytest.approx(51)
    assert figures["std"] == pytest.approx(np.std(np.arange(1, 102)))
    assert timed.spread == pytest.approx(50 / 51)
