"""The study of WGSEF: its size, its parts, what a run costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.study.engine import Study
from benchmarks.study.ledger import Ledger
from benchmarks.wgsef import latency, report
from benchmarks.wgsef.runs import METHODS, SPARSE, Of, Run
from benchmarks.wgsef.training import execute

MILLISECONDS = {"vgg": 90.0, "resnet": 27.0}
AT_ONCE = 12.0
WIDTHS = {"vgg": 5, "resnet": 6}


@dataclass(frozen=True)
class WGSEFStudy(Study[Run]):
    """Dense, WGSEF and group lasso on two CNNs, and the latency of what they leave.

    Attributes:
        models: How each of them is trained.
        seeds: Number of seeds.
        tested: Test images; all when None.
        timed: Seconds for each timing.
    """

    models: Mapping[str, Of] = field(
        default_factory=lambda: {"vgg": Of(width=16, steps=1404), "resnet": Of(width=16, steps=1872)}
    )
    seeds: int = 3
    tested: int | None = None
    timed: float = 1.5

    kind = Run
    parts = ("vgg", "resnet", "latency")

    def wanted(self, ledger: Ledger[Run], part: str) -> Iterator[Run]:
        """All training runs of a model; the timing of every narrowed model that is there."""
        if part != "latency":
            if part in self.models:
                yield from self.models[part].cells(part, self.seeds)
            return
        for model, of in self.models.items():
            for run in of.cells(model, self.seeds):
                if run.method in SPARSE and run in ledger and ledger[run].get("gone"):
                    yield replace(run, removed=tuple(ledger[run]["gone"]))

    def execute(self, run: Run) -> dict[str, Any]:
        """Trains one run, or times what it left."""
        return latency.time(run, self.timed) if run.removed else execute(run, self.tested)

    def seconds(self, run: Run) -> float:
        """From steps measured on a 2.5 GHz Xeon core."""
        if run.removed:
            return AT_ONCE + 8 * self.timed
        return AT_ONCE + run.steps * MILLISECONDS[run.model] / 1000

    def pretended(self, run: Run) -> dict[str, Any]:
        """A result like any other."""
        return {"accuracy": 50.0, "gone": [1] * WIDTHS[run.model]}

    def label(self, run: Run) -> str:
        """Model, method, share of filters, seed."""
        what = "timing of " if run.removed else ""
        share = "" if run.method == "dense" else f" {100 * run.keep:g} %"
        return f"{what}{run.model} {METHODS[run.method]}{share} seed {run.seed}"

    def outcome(self, result: Mapping[str, Any]) -> str:
        """Accuracies around the hard finish and at the end, or the speedups."""
        if "exact" in result:
            return ", ".join(
                f"{name} {value:.2f}x at batch {batch}"
                for name in ("exact", "blocks")
                for batch, value in result[name]["speedup"].items()
            )
        if result["accuracy"] is None:
            return "diverged"
        around = f"{result['before']:.2f} → {result['after']:.2f} → " if "before" in result else ""
        return f"{around}{result['accuracy']:.2f} %"

    def report(self, ledger: Ledger[Run], folder: Path, document: Path | None) -> dict[str, Any]:
        """Tables by model, a plot."""
        return report.write(self.models, ledger, folder, document)


QUICK = WGSEFStudy(
    models={"vgg": Of(width=4, steps=20, batch=32, keeps=(0.5,))},
    seeds=1,
    tested=300,
    timed=0.05,
)
FULL = WGSEFStudy()
