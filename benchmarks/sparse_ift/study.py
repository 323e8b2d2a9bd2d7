"""The study of Sparse-IFT's claim: its size, its parts, what a run costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.sparse_ift import report
from benchmarks.sparse_ift.runs import Cell, Of, Run, base, both, tuned, wanted, wider
from benchmarks.sparse_ift.training import execute
from benchmarks.study.engine import Study
from benchmarks.study.ledger import Ledger

WIDE: tuple[Cell, ...] = tuple(one for sparsity in (0.75, 0.9, 0.5) for one in both("wide", sparsity, "sp"))
DROP_IN: tuple[Cell, ...] = tuple(
    one for family in ("parallel", "factorized", "doped") for one in both(family, 0.75, "sp")
)
SCALED: tuple[Cell, ...] = (("wide", 0.75, "rigl", "supar"), *both("wide", 0.9, "supar"))
WIDER: tuple[Cell, ...] = (wider(0.75), wider(0.9))
TEXT: tuple[Cell, ...] = (
    *(one for sparsity in (0.75, 0.5) for one in both("wide", sparsity, "sp")),
    *both("wide", 0.75, "supar"),
    *(wider(sparsity) for sparsity in (0.75, 0.5)),
)

MILLISECONDS = {
    ("resnet", "dense", 0.0): 19.0,
    ("resnet", "dense", 0.5): 19.0,
    ("resnet", "dense", 0.75): 27.0,
    ("resnet", "dense", 0.9): 32.0,
    ("resnet", "wide", 0.5): 21.0,
    ("resnet", "wide", 0.75): 25.0,
    ("resnet", "wide", 0.9): 32.0,
    ("resnet", "parallel", 0.75): 58.0,
    ("resnet", "factorized", 0.75): 37.0,
    ("resnet", "doped", 0.75): 33.0,
    ("gpt", "dense", 0.0): 28.0,
    ("gpt", "dense", 0.5): 39.0,
    ("gpt", "dense", 0.75): 46.0,
    ("gpt", "wide", 0.5): 41.0,
    ("gpt", "wide", 0.75): 50.0,
}
DEAREST = 60.0
POOLING_SAVES = 0.4
AT_ONCE = 1.5


@dataclass(frozen=True)
class SparseIft(Study[Run]):
    """Models of the same FLOPs as a dense one, and dense models of the wider shapes.

    Attributes:
        models: How each part is trained; parts of one model share its base.
        seeds: Number of seeds.
        tested: Test images, or windows of text; all when None.
    """

    models: Mapping[str, Of] = field(
        default_factory=lambda: {
            "wide": _resnet((*WIDE, *WIDER)),
            "drop-in": _resnet(DROP_IN),
            "scaled": _resnet(SCALED),
            "text": Of(64, 900, 16, (2**-8, 2**-7, 2**-6), TEXT, update_every=30),
        }
    )
    seeds: int = 3
    tested: int | None = None

    kind = Run
    parts = ("wide", "drop-in", "scaled", "text")

    def base(self, part: str) -> Run:
        """The first dense run of a part."""
        return base("gpt" if part == "text" else "resnet", self.models[part])

    def wanted(self, ledger: Ledger[Run], part: str) -> Iterator[Run]:
        """The base at every rate; at the best one, everything else."""
        of, dense = self.models[part], self.base(part)
        yield from of.tuning(dense)
        best = tuned(dense, of, ledger)
        if best is not None:
            yield from wanted(best, of, self.seeds)

    def execute(self, run: Run) -> dict[str, Any]:
        """Trains one run."""
        return execute(run, self.tested)

    def seconds(self, run: Run) -> float:
        """From the processor time of steps on a 2.5 GHz Xeon core."""
        step = MILLISECONDS.get((run.model, run.family, run.sparsity), DEAREST) / 1000
        if run.model == "resnet" and not run.pool:
            step /= 1 - POOLING_SAVES
        return AT_ONCE + run.steps * step

    def pretended(self, run: Run) -> dict[str, Any]:
        """A loss like any other."""
        return {"loss": 1.0, "accuracy": 50.0}

    def label(self, run: Run) -> str:
        """Model, cell, rate, seed."""
        which = (run.family, run.sparsity, run.method, run.parameterization)
        return f"{run.model} {report.name_of(which)} lr {run.lr:g} seed {run.seed}"

    def outcome(self, result: Mapping[str, Any]) -> str:
        """Accuracy or loss, and the counted FLOPs."""
        if result["loss"] is None:
            return "diverged"
        measured = f"{result['accuracy']:.2f} %" if "accuracy" in result else f"{result['loss']:.4f} nats"
        return f"{measured} at {result['flops_ratio']:.4f} times the FLOPs"

    def report(self, ledger: Ledger[Run], folder: Path, document: Path | None) -> dict[str, Any]:
        """A table a part, and a plot a model."""
        found = {}
        for part in self.parts:
            of, dense = self.models[part], tuned(self.base(part), self.models[part], ledger)
            if dense is not None:
                found[part] = report.Results(dense, of.cells, ledger)
        return report.write(found, self.parts, folder, document)


def _resnet(cells: tuple[Cell, ...]) -> Of:
    return Of(6, 3276, 128, (0.1, 0.05, 0.2), cells, pool=True)


QUICK = SparseIft(
    models={
        "wide": Of(6, 4, 32, (0.05,), (*both("wide", 0.75, "sp"), wider(0.75)), 2, pool=True),
        "drop-in": Of(
            6,
            4,
            32,
            (0.05,),
            tuple((f, 0.75, "rigl", "sp") for f in ("parallel", "factorized", "doped")),
            2,
            pool=True,
        ),
        "scaled": Of(6, 4, 32, (0.05,), (("wide", 0.9, "rigl", "supar"),), 2, pool=True),
        "text": Of(32, 4, 4, (2**-7,), (("wide", 0.5, "rigl", "supar"), wider(0.5)), 2),
    },
    seeds=1,
    tested=64,
)
FULL = SparseIft()
