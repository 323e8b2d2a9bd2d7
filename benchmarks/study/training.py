"""The plain training loop of the studies: whatever is sparse lives in the optimizer's hooks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to 0, as a factor on the learning rate.

    Attributes:
        steps: Optimizer steps in all.
        warmup: Share of them.
    """

    steps: int
    warmup: float = 0.0

    def __call__(self, step: int) -> float:
        """The factor at a step; steps count from 0."""
        rising = int(self.warmup * self.steps)
        if step < rising:
            return (step + 1) / rising
        return (1 + math.cos(math.pi * (step - rising) / max(1, self.steps - rising))) / 2


@dataclass(frozen=True)
class Linear:
    """Linear warm-up, at least one step of it, and a linear way down to 0, as a factor on the learning rate.

    Attributes:
        steps: Optimizer steps in all.
        warmup: Share of them.
    """

    steps: int
    warmup: float = 0.0

    def __call__(self, step: int) -> float:
        """The factor at a step; steps count from 0."""
        rising = max(1, int(self.warmup * self.steps))
        return min((step + 1) / rising, (self.steps - step) / max(1, self.steps - rising))


def train(
    model: nn.Module,
    optimizer: optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    rate: Cosine | Linear,
    *,
    clip: float | None = None,
) -> float | None:
    """Cross-entropy over the last dimension of the outputs, for `rate.steps` steps.

    Returns:
        Mean training loss of the last tenth of the steps, in nats; None where it became infinite or NaN, at
        which training ends.
    """
    schedule = optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    counted, total, first = 0, 0.0, rate.steps - max(1, rate.steps // 10)
    for step in range(rate.steps):
        inputs, targets = next(batches)
        loss = F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())
        value = loss.item()
        if not math.isfinite(value):
            return None
        if step >= first:
            counted, total = counted + 1, total + value
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
    return total / counted
