"""What a run is, and the file of finished runs: one JSON line each, so that a killed study goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

DIVERGED = math.inf


@dataclass(frozen=True)
class Cell:
    """All settings of a training run but the learning rate and the seed.

    Attributes:
        model: `gpt` or `cnn`.
        width: Width of the dense base: of the residual stream, or channels of the first stage.
        family: `masked`, or `wide` at equal FLOPs.
        density: 1 − sparsity as asked for; 1 is the dense base.
        parameterization: `supar`, `mup` or `sp`; `dense` at density 1, where the three are one.
        gamma: Exponent of the density in SμPar.
        sigma: Standard deviation of the base's initial weights.
        alpha_in: Factor on the embeddings.
        alpha_out: Factor on the logits.
        method: `static` or `rigl`.
        rate_behind_norm: CNN only: the learning rates of convolutions before a BatchNorm are corrected too.
        steps: Optimizer steps.
        batch: Windows or images in a step.
        base_width: Width of the dense proxy that was tuned, where the model is wider than it; else 0.
    """

    model: str = "gpt"
    width: int = 192
    family: str = "masked"
    density: float = 1.0
    parameterization: str = "dense"
    gamma: float = 1.0
    sigma: float = 0.08
    alpha_in: float = 1.0
    alpha_out: float = 1.0
    method: str = "static"
    rate_behind_norm: bool = False
    steps: int = 150
    batch: int = 8
    base_width: int = 0

    def at(self, density: float, parameterization: str, **changes: Any) -> Cell:
        """The cell with this density and parameterization; at density 1 the base itself."""
        if density == 1.0:
            return replace(self, density=1.0, parameterization="dense")
        return replace(self, density=density, parameterization=parameterization, **changes)


@dataclass(frozen=True)
class Run:
    """One training run; its learning rate is 2^log2_lr."""

    cell: Cell
    log2_lr: int
    seed: int = 0


class Ledger:
    """Finished runs, in memory and in a file of JSON lines.

    Args:
        path: The file; read now, appended to later. A line that a kill cut short is left out.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._results: dict[Run, dict[str, Any]] = {}
        if path.exists():
            content = path.read_text()
            for line in content.splitlines():
                self._read(line)
            if content and not content.endswith("\n"):
                path.write_text("".join(f"{line}\n" for line in content.splitlines()[:-1]))

    def _read(self, line: str) -> None:
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            return
        run = Run(Cell(**data.pop("cell")), data.pop("log2_lr"), data.pop("seed"))
        self._results[run] = data

    def add(self, run: Run, result: dict[str, Any]) -> None:
        """Records a run, in the file with one write."""
        self._results[run] = result
        line = json.dumps({**asdict(run), **result}, allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def __contains__(self, run: object) -> bool:
        return run in self._results

    def __len__(self) -> int:
        return len(self._results)

    def items(self) -> Iterator[tuple[Run, dict[str, Any]]]:
        """Runs and their results, in the order of the file."""
        yield from self._results.items()

    def loss(self, run: Run) -> float:
        """Validation loss in nats; infinite for a run that diverged.

        Raises:
            KeyError: The run is not there.
        """
        loss = self._results[run]["loss"]
        return DIVERGED if loss is None else float(loss)

    def losses(self, cell: Cell) -> dict[int, dict[int, float]]:
        """Loss by log2 of the learning rate, by seed."""
        found: dict[int, dict[int, float]] = {}
        for run in self._results:
            if run.cell == cell:
                found.setdefault(run.log2_lr, {})[run.seed] = self.loss(run)
        return found
