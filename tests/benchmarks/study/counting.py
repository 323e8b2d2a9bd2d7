"""A study whose runs compute a number at once, and whose second part waits for the first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.document import refresh, table
from benchmarks.study.engine import Study
from benchmarks.study.ledger import Ledger
from benchmarks.study.samples import Sample


@dataclass(frozen=True)
class Inner:
    name: str = "a"
    shares: tuple[float, ...] = (0.5,)


@dataclass(frozen=True)
class Sum:
    inner: Inner = field(default_factory=Inner)
    rate: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Counting(Study[Sum]):
    """Tunes `rate` for one seed, then runs all seeds at the best."""

    rates: tuple[float, ...] = (1.0, 2.0, 3.0)
    seeds: int = 3
    broken: int = -1

    kind = Sum
    parts = ("tune", "main")

    def wanted(self, ledger: Ledger[Sum], part: str) -> Iterator[Sum]:
        tuning = [Sum(rate=rate) for rate in self.rates]
        if part == "tune":
            yield from tuning
        elif all(run in ledger for run in tuning):
            best = max(tuning, key=lambda run: ledger[run]["value"])
            yield from (Sum(Inner("b"), best.rate, seed) for seed in range(self.seeds))

    def execute(self, run: Sum) -> dict[str, Any]:
        if run.seed == self.broken:
            raise ValueError("broken on purpose")
        return {"value": -((run.rate - 2) ** 2) + run.seed, "process": os.getpid()}

    def seconds(self, run: Sum) -> float:
        return 60.0

    def pretended(self, run: Sum) -> dict[str, Any]:
        return {"value": 0.0}

    def label(self, run: Sum) -> str:
        return f"{run.inner.name} {run.rate} seed {run.seed}"

    def outcome(self, result: Mapping[str, Any]) -> str:
        return str(result["value"])

    def report(self, ledger: Ledger[Sum], folder: Path, document: Path | None) -> dict[str, Any]:
        sample = Sample.of(ledger, Sum(Inner("b"), 2.0), "value")
        if document is not None:
            refresh(document, {"main": table(["", "value"], [["b", sample.text()]])})
        return {"main": sample.to_json()}
