"""The study of sparse fine-tuning: its size, its parts, what a run costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.minilm_finetune import latency, report
from benchmarks.minilm_finetune.runs import SPARSE, Grid, Run
from benchmarks.minilm_finetune.source import functions
from benchmarks.minilm_finetune.training import train
from benchmarks.study.engine import Study
from benchmarks.study.ledger import Ledger
from sparsify.train import Data

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "results" / "minilm_finetune" / "models"
SECONDS_A_FUNCTION = 0.030
DEARER = {"gmp": 1.05, "rigl": 1.05, "wide": 1.9}


ESSENTIAL = ("dense", "one-shot", "tune")
"""Parts without which nothing is timed. To time more models later, delete the timing's line of runs.jsonl."""


@dataclass(frozen=True)
class MiniLM(Study[Run]):
    """MiniLM, fine-tuned dense and sparse.

    Attributes:
        pretrained: Whether it is MiniLM, or a tiny BERT with random weights.
        packages: Number of classes.
        train: Most functions of a class to train on.
        test: Most functions of a class to test on.
        length: Tokens of a function.
        steps: Optimizer steps.
        batch: Functions in a step.
        lr: Base learning rate.
        seeds: Number of seeds.
        densities: Of the masked models.
        methods: Keys of `runs.SPARSE`.
        duration: Seconds that a model is timed at every setting and repeat.
        models: Folder of the written models: teachers, and seed 0 of everything for the latency.
    """

    pretrained: bool = True
    packages: int = 15
    train: int = 320
    test: int = 60
    length: int = 32
    steps: int = 300
    batch: int = 16
    lr: float = 2e-4
    seeds: int = 3
    densities: tuple[float, ...] = (0.2, 0.1)
    methods: tuple[str, ...] = tuple(SPARSE)
    duration: float = 3.0
    models: str = str(FOLDER)

    kind = Run
    parts = ("dense", "one-shot", "tune", "distill", "wide", "latency")

    @property
    def grid(self) -> Grid:
        """What is compared."""
        dense = Run("dense", 1.0, False, 0, self.steps, self.batch, self.lr)
        return Grid(dense, self.seeds, self.densities, self.methods)

    def data(self) -> Data:
        """The functions."""
        return functions(self.packages, self.train, self.test, self.length, self.pretrained)

    def wanted(self, ledger: Ledger[Run], part: str) -> Iterator[Run]:
        """Dense first; the latency last, of the models that are there once the essential parts are."""
        runs = list(self.grid.runs(part))
        if part == "latency":
            others = [run for one in ESSENTIAL for run in self.grid.runs(one)]
            yield from runs if all(run in ledger for run in others) else ()
        else:
            dense = list(self.grid.runs("dense"))
            yield from (run for run in runs if part == "dense" or dense[run.seed] in ledger)

    def execute(self, run: Run) -> dict[str, Any]:
        """Trains one run, or times all that were written."""
        folder = Path(self.models)
        if run.method != "latency":
            return train(run, self.data(), folder, pretrained=self.pretrained)
        seed_0 = [one for part in self.parts[:-1] for one in self.grid.runs(part) if one.seed == 0]
        return {"latency": latency.measure(seed_0, self.grid.dense, folder, duration=self.duration)}

    def seconds(self, run: Run) -> float:
        """From steps measured on a 2.5 GHz Xeon core."""
        testing = self.packages * self.test * SECONDS_A_FUNCTION / 3
        if run.method == "latency":
            return 12 * latency.REPEATS * 4 * self.duration
        if run.method == "one-shot":
            return 15 + testing
        teaching = 1.33 if run.distilled else 1.0
        training = run.steps * run.batch * SECONDS_A_FUNCTION
        return 15 + testing + training * teaching * DEARER.get(run.method, 1.0)

    def pretended(self, run: Run) -> dict[str, Any]:
        """An accuracy like any other."""
        return {"accuracy": 50.0}

    def label(self, run: Run) -> str:
        """Method, density, teacher, seed."""
        return run.name

    def outcome(self, result: Mapping[str, Any]) -> str:
        """Accuracy."""
        return f"{result['accuracy']:.2f} %" if "accuracy" in result else "timed"

    def report(self, ledger: Ledger[Run], folder: Path, document: Path | None) -> dict[str, Any]:
        """Table and plot."""
        return report.write(ledger, self.grid, folder, document)


QUICK = MiniLM(
    pretrained=False,
    packages=3,
    train=40,
    test=10,
    length=16,
    steps=4,
    batch=8,
    lr=1e-3,
    seeds=1,
    densities=(0.1,),
    duration=0.05,
    models=str(Path(tempfile.gettempdir()) / "sparsify-minilm-finetune-quick"),
)
FULL = MiniLM()
