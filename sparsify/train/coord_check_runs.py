"""The runs of a coordinate check: a few steps of every variant, with activations read on the way."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import optim

from sparsify.errors import UserError
from sparsify.masks import SparseGraphModule
from sparsify.scaling import Parameterization, param_groups
from sparsify.train.coord_check_data import Source
from sparsify.train.coord_check_record import Coordinates
from sparsify.train.coord_check_slopes import Values
from sparsify.train.study_progress import StudyBar
from sparsify.train.variants import Variant, Variants

FIRST_LR = {"adamw": 2.0**-7, "sgd": 2.0**-4}
_TRIALS = 8
_LAST = 3
_TOLERANCE = 0.02
_MOMENTUM = 0.9

Reading = tuple[dict[str, list[float]], list[float]]
"""Activations by layer and losses, both [step]."""
Measured = tuple[dict[str, Values], Values]
"""The same, as [point][seed][step]."""


@dataclass(frozen=True)
class Settings:
    """What every run of a check has in common.

    Attributes:
        steps: Optimizer steps.
        seeds: Runs of each variant.
        lr: Learning rate of the dense base; None until one was found.
        optimizer: `adamw` or `sgd`.
        rules: Rules of the parameterization in force.
        batch_size: Examples in a batch.
    """

    steps: int
    seeds: int
    lr: float | None
    optimizer: Literal["adamw", "sgd"]
    rules: tuple[str, ...]
    batch_size: int

    def check(self) -> None:
        """Checks the ranges.

        Raises:
            UserError: A value is out of range.
        """
        if self.optimizer not in FIRST_LR:
            raise UserError(f"optimizer '{self.optimizer}' is not one of {', '.join(FIRST_LR)}")
        for name in ("steps", "seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr is not None and not 0.0 < self.lr < math.inf:
            raise UserError(f"lr must be positive and finite, got {self.lr}")


class Runs:
    """Runs variants; those that two parameterizations have in common are run once.

    Args:
        variants: Makes the models.
        source: What they are trained on.
        settings: Of all runs.
    """

    def __init__(self, variants: Variants, source: Source, settings: Settings) -> None:
        self.variants, self.source, self.settings = variants, source, settings
        self.layers = variants.masked_layers()
        self._known: dict[Any, Reading] = {}
        self._first_loss = math.nan

    def find_lr(self) -> None:
        """Fills in the learning rate: a large power of 2 with which the dense model still learns well.

        That is the largest whose loss falls by 98 % of what the best one's does, so that updates outweigh the
        initial weights and nothing diverges.
        """
        losses: dict[float, float] = {}

        def loss(lr: float) -> float:
            if lr not in losses:
                losses[lr] = self._dense_loss(lr) if len(losses) < _TRIALS else math.inf
            return losses[lr]

        best = FIRST_LR[self.settings.optimizer]
        for factor in (0.5, 2.0):
            while loss(best * factor) < loss(best):
                best *= factor
        highest = losses[best] + _TOLERANCE * abs(self._first_loss - losses[best])
        while loss(best * 2) <= highest:
            best *= 2
        self.settings = replace(self.settings, lr=best)

    def _dense_loss(self, lr: float) -> float:
        """Mean loss of the dense model over the last steps; infinite where it is not finite."""
        trial = replace(self.settings, lr=lr)
        losses = self._measure(self.variants.model(Variant(1.0), "supar", 0), 0, trial)[1]
        self._first_loss = losses[0]
        last = statistics.fmean(losses[-_LAST:])
        return last if math.isfinite(last) else math.inf

    def all(self, parameterization: Parameterization, points: Sequence[Variant], bar: StudyBar) -> Measured:
        """The readings of all points."""
        values: dict[str, Values] = {name: [] for name in self.layers}
        losses: Values = []
        for point in points:
            found = []
            for seed in range(self.settings.seeds):
                found.append(self._run(parameterization, point, seed))
                bar.finished(f"{parameterization}  density {point.density:.4g}  loss {found[-1][1][-1]:.3f}")
            for name in self.layers:
                values[name].append([activations[name] for activations, _ in found])
            losses.append([loss for _, loss in found])
        return values, losses

    def _run(self, parameterization: Parameterization, point: Variant, seed: int) -> Reading:
        rules = self.settings.rules
        key = (self.variants.same(point, parameterization, rules), seed)
        if key not in self._known:
            model = self.variants.model(point, parameterization, seed, rules)
            self._known[key] = self._measure(model, seed, self.settings)
        return self._known[key]

    def _measure(self, model: SparseGraphModule, seed: int, settings: Settings) -> Reading:
        coordinates = Coordinates(model, self.layers)
        optimizer = _optimizer(model, settings)
        rows: list[dict[str, float]] = []
        losses: list[float] = []
        torch.manual_seed(seed)
        for step in range(settings.steps + 1):
            with torch.set_grad_enabled(step < settings.steps):
                loss = self.source.loss(model, seed, step)
            rows.append(coordinates.take())
            losses.append(float(loss.detach()))
            if step < settings.steps:
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return {name: [row[name] for row in rows] for name in self.layers}, losses


def _optimizer(model: SparseGraphModule, settings: Settings) -> optim.Optimizer:
    lr = FIRST_LR[settings.optimizer] if settings.lr is None else settings.lr
    groups = param_groups(model, lr=lr, optimizer=settings.optimizer)
    if settings.optimizer == "sgd":
        return optim.SGD(groups, lr=lr, momentum=_MOMENTUM)
    return optim.AdamW(groups, lr=lr)
