"""The study of sparse training methods: its size, its parts, what a run costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.engine import Study
from benchmarks.study.ledger import Ledger
from benchmarks.topology import report
from benchmarks.topology.runs import METHODS, SPARSE, Of, Run, base, cells, tuned
from benchmarks.topology.training import execute

WITHOUT_95 = tuple(method for method in SPARSE if method != "srigl-95")

MILLISECONDS = {"lenet": 3.8, "resnet": 23.5}
MASKS_COST = {"lenet": 1.22, "resnet": 1.11}
AT_ONCE = 1.0


@dataclass(frozen=True)
class Topology(Study[Run]):
    """Dense, static and changing masks on two models over densities.

    Attributes:
        models: How each of them is trained.
        distribution: How the density is spread over layers.
        update_every: Steps between two changes of the topology.
        seeds: Number of seeds.
        tested: Test images; all when None.
    """

    models: Mapping[str, Of] = field(
        default_factory=lambda: {
            "lenet": Of((0.01, 0.05, 0.02, 0.1), 5400, 100, (0.1, 0.05, 0.025)),
            "resnet": Of((0.01, 0.05, 0.1), 1872, 128, (0.2, 0.4, 0.8), 16, WITHOUT_95),
        }
    )
    distribution: str = "erk"
    update_every: int = 100
    seeds: int = 3
    tested: int | None = None

    kind = Run
    parts = ("lenet", "resnet")

    def base(self, part: str) -> Run:
        """The first dense run of a part."""
        return base(part, self.models[part], self.distribution, self.update_every)

    def wanted(self, ledger: Ledger[Run], part: str) -> Iterator[Run]:
        """The dense model at every rate; at the best one, everything else."""
        dense, of = self.base(part), self.models[part]
        yield from of.tuning(dense)
        best = tuned(dense, of, ledger)
        if best is not None:
            yield from cells(best, of, self.seeds)

    def execute(self, run: Run) -> dict[str, Any]:
        """Trains one run."""
        return execute(run, self.tested)

    def seconds(self, run: Run) -> float:
        """From the processor time of steps on a 2.5 GHz Xeon core."""
        step = MILLISECONDS[run.model] / 1000 * (1.0 if run.method == "dense" else MASKS_COST[run.model])
        return AT_ONCE + run.steps * step

    def pretended(self, run: Run) -> dict[str, Any]:
        """A loss like any other."""
        return {"loss": 1.0, "accuracy": 50.0}

    def label(self, run: Run) -> str:
        """Model, method, density, rate, seed."""
        density = "" if run.method == "dense" else f" {100 * run.density:g} %"
        return f"{run.model} {METHODS[run.method].label}{density} lr {run.lr:g} seed {run.seed}"

    def outcome(self, result: Mapping[str, Any]) -> str:
        """Accuracy, or that it diverged."""
        return "diverged" if result["accuracy"] is None else f"{result['accuracy']:.2f} %"

    def report(self, ledger: Ledger[Run], folder: Path, document: Path | None) -> dict[str, Any]:
        """Tables by model, what was expected, a plot."""
        chosen = {part: tuned(self.base(part), self.models[part], ledger) for part in self.parts}
        found = [
            report.Results(self.models[part], dense, ledger)
            for part, dense in chosen.items()
            if dense is not None
        ]
        return report.write(found, folder, document)


QUICK = Topology(
    models={
        "lenet": Of((0.05,), 12, 100, (0.05,)),
        "resnet": Of((0.1,), 4, 32, (0.05,), width=8, methods=("static", "rigl", "srigl", "gmp")),
    },
    update_every=3,
    seeds=1,
    tested=500,
)
FULL = Topology()
