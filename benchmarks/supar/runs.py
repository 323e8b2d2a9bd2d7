"""What a run is, and what the finished ones measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.study.ledger import Ledger

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


Runs = Ledger[Run]


def loss_of(ledger: Runs, run: Run) -> float:
    """Validation loss in nats; infinite for a run that diverged.

    Raises:
        KeyError: The run is not there.
    """
    loss = ledger[run]["loss"]
    return DIVERGED if loss is None else float(loss)


def losses_of(ledger: Runs, cell: Cell) -> dict[int, dict[int, float]]:
    """Loss by log2 of the learning rate, by seed."""
    found: dict[int, dict[int, float]] = {}
    for run, _ in ledger.items():
        if run.cell == cell:
            found.setdefault(run.log2_lr, {})[run.seed] = loss_of(ledger, run)
    return found
