"""The study of SμPar: its size, its parts, what a run costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.study.engine import Study
from benchmarks.supar import parts, report
from benchmarks.supar.parts import PARTS, Size
from benchmarks.supar.runs import Run, Runs
from benchmarks.supar.training import execute

CNN_MILLISECONDS = 34.0
GPT_MILLISECONDS = 15.0
"""Of a step of 8 windows at width 64; the cost grows a little more slowly than width to the power 3/2."""
RIGL_COST = 1.3
AT_ONCE = 2.0
EXPECTED = {"gpt": -8, "cnn": -4}


@dataclass(frozen=True)
class Supar(Study[Run]):
    """Learning-rate curves over densities, widths and parameterizations.

    Attributes:
        size: How large the study is.
    """

    size: Size = field(default_factory=Size)

    kind = Run
    parts = PARTS

    def wanted(self, ledger: Runs, part: str) -> Iterator[Run]:
        """What a part's curves still need; first the tuning that they rest on."""
        return parts.wanted_runs(self.size, ledger, part)

    def execute(self, run: Run) -> dict[str, Any]:
        """Trains one run."""
        return execute(run)

    def seconds(self, run: Run) -> float:
        """From the time of steps on a 2.5 GHz Xeon core."""
        cell = run.cell
        if cell.model == "cnn":
            return AT_ONCE + cell.steps * CNN_MILLISECONDS / 1000
        widening = cell.density**-0.5 if cell.family == "wide" else 1.0
        step = GPT_MILLISECONDS * (cell.width * widening / 64) ** 1.4 * cell.batch / 8
        return AT_ONCE + float(cell.steps * step / 1000 * (RIGL_COST if cell.method == "rigl" else 1.0))

    def pretended(self, run: Run) -> dict[str, Any]:
        """A loss on a parabola, so that the searches end where most of them do."""
        return {"loss": 2.0 + 0.01 * (run.log2_lr - EXPECTED[run.cell.model]) ** 2}

    def label(self, run: Run) -> str:
        """All settings that vary, rate, seed."""
        cell = run.cell
        return (
            f"{cell.model} {cell.family} {cell.method} 1/{1 / cell.density:g} {cell.parameterization} "
            f"γ {cell.gamma:g} σ {cell.sigma:g} α {cell.alpha_in:g}/{cell.alpha_out:g} d {cell.width} "
            f"lr 2^{run.log2_lr} seed {run.seed}"
        )

    def outcome(self, result: Mapping[str, Any]) -> str:
        """Validation loss, or that it diverged."""
        return "diverged" if result["loss"] is None else f"{result['loss']:.4f} nats"

    def report(self, ledger: Runs, folder: Path, document: Path | None) -> dict[str, Any]:
        """Curves, optima and losses of every part."""
        return report.write(self.size, ledger, folder, document)


QUICK = Supar(parts.QUICK)
FULL = Supar()
