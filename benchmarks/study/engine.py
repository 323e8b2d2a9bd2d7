"""What a study is, and the worker processes that train its runs."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, Generic

import torch

from benchmarks.study.ledger import Ledger, R


class Study(ABC, Generic[R]):
    """Runs of one kind, in parts, and what is to be said of them.

    A study is sent to the worker processes with every run, so it holds its size and nothing else.

    Attributes:
        kind: The frozen dataclass of a run.
        parts: Names of the parts, in the order in which they are trained.
    """

    kind: type[R]
    parts: Sequence[str]

    @abstractmethod
    def wanted(self, ledger: Ledger[R], part: str) -> Iterable[R]:
        """All runs of a part that can be started with what is finished, the most telling first.

        Finished ones may be among them. A part that rests on others (a tuned rate) yields nothing until those
        are there.
        """

    @abstractmethod
    def execute(self, run: R) -> dict[str, Any]:
        """Trains and measures; what it returns is recorded."""

    @abstractmethod
    def seconds(self, run: R) -> float:
        """About how long a run takes on one core."""

    @abstractmethod
    def pretended(self, run: R) -> dict[str, Any]:
        """A result that stands in for a run's own while the runs to come are counted."""

    @abstractmethod
    def label(self, run: R) -> str:
        """What the progress calls a run."""

    @abstractmethod
    def outcome(self, result: Mapping[str, Any]) -> str:
        """What the progress says of a result."""

    @abstractmethod
    def report(self, ledger: Ledger[R], folder: Path, document: Path | None) -> dict[str, Any]:
        """Writes plots into a folder and tables into a document; returns what goes into `summary.json`."""


def outstanding(study: Study[R], ledger: Ledger[R], parts: Sequence[str]) -> list[R]:
    """All runs that are still to be trained, those included that wait for the results of others."""
    pretended, found = ledger.copy(), []
    while missing := list(dict.fromkeys(_missing(study, pretended, parts))):
        for run in missing:
            pretended.add(run, study.pretended(run))
        found += missing
    return found


def timed(study: Study[R], run: R) -> dict[str, Any]:
    """Trains a run; adds `seconds` by the clock and `cpu_seconds` to its result."""
    clock, processor = time.perf_counter(), time.process_time()
    result = study.execute(run)
    return {
        **result,
        "seconds": round(time.perf_counter() - clock, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
    }


def _missing(study: Study[R], ledger: Ledger[R], parts: Sequence[str]) -> Iterator[R]:
    for part in parts:
        yield from (run for run in study.wanted(ledger, part) if run not in ledger)


class Training(Generic[R]):
    """Trains what is missing until nothing is left.

    Args:
        study: What to train.
        ledger: Finished runs; takes the new ones.
        parts: The parts to train.
        workers: Processes, one thread each, in which a run that fails is reported and passed over; 0 trains
            in this process and lets errors through.
        stamp: Recorded with every result: the revision of the package.

    Attributes:
        failures: Runs that failed, and why.
    """

    def __init__(
        self,
        study: Study[R],
        ledger: Ledger[R],
        parts: Sequence[str],
        workers: int,
        stamp: Mapping[str, Any],
    ) -> None:
        self.study, self.ledger, self.parts, self.workers = study, ledger, parts, workers
        self.stamp = dict(stamp)
        self.failures: dict[R, BaseException] = {}
        self._began = time.monotonic()
        self._taken = self._expected = 0.0

    def run(self) -> None:
        """Trains everything.

        Raises:
            BrokenExecutor: A worker was killed; started again, the study goes on.
        """
        if self.workers == 0:
            prepare_worker()
            while (run := self._next(())) is not None:
                self._finish(run, timed(self.study, run))
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, _begin_worker) as pool:
            try:
                self._run_on(pool)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _run_on(self, pool: ProcessPoolExecutor) -> None:
        busy: dict[Future[dict[str, Any]], R] = {}
        while True:
            while len(busy) < self.workers and (run := self._next(busy.values())) is not None:
                busy[pool.submit(timed, self.study, run)] = run
            if not busy:
                return
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                run, error = busy.pop(future), future.exception()
                if isinstance(error, BrokenExecutor):
                    raise error
                if error is None:
                    self._finish(run, future.result())
                else:
                    self._fail(run, error)

    def _next(self, busy: Iterable[R]) -> R | None:
        passed = {*busy, *self.failures}
        missing = _missing(self.study, self.ledger, self.parts)
        return next((run for run in missing if run not in passed), None)

    def _finish(self, run: R, result: dict[str, Any]) -> None:
        self.ledger.add(run, {**result, **self.stamp})
        self._taken += result["seconds"]
        self._expected += self.study.seconds(run)
        self._say(f"{self.study.label(run)}: {self.study.outcome(result)}")

    def _fail(self, run: R, error: BaseException) -> None:
        self.failures[run] = error
        self._say(f"{self.study.label(run)}: failed, {type(error).__name__}: {error}")

    def _say(self, text: str) -> None:
        rest = outstanding(self.study, self.ledger, self.parts)
        slower = self._taken / self._expected if self._expected else 1.0
        left = slower * sum(self.study.seconds(run) for run in rest) / max(1, self.workers) / 60
        spent = (time.monotonic() - self._began) / 60
        total = len(self.ledger) + len(rest)
        line = f"{spent:6.1f} min  {len(self.ledger):4d} of {total} runs, about {left:.0f} min left  {text}"
        print(line, file=sys.stderr, flush=True)


def prepare_worker() -> None:
    """One thread, and no slow arithmetic on denormal numbers."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _begin_worker() -> None:
    """Ends without a word at Ctrl-C, which the terminal sends to every process of the study."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    prepare_worker()
