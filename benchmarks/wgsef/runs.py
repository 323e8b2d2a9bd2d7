"""What is trained and timed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

METHODS = {"dense": "dense", "wgsef": "WGSEF", "lasso": "group lasso"}
SPARSE = ("wgsef", "lasso")


@dataclass(frozen=True)
class Run:
    """One training run, or the timing of what it left.

    Attributes:
        model: `vgg` or `resnet`.
        method: `dense`, `wgsef` or `lasso`.
        keep: Share of the filters that stay; 1 for the dense model.
        width: Channels of the first stage.
        batch: Images in a step.
        steps: Optimizer steps.
        lr: Peak learning rate.
        seed: Decides weights and batches.
        removed: For a timing, the filters that are gone from each width; empty for a training run.
    """

    model: str
    method: str
    keep: float
    width: int
    batch: int
    steps: int
    lr: float
    seed: int = 0
    removed: tuple[int, ...] = ()


@dataclass(frozen=True)
class Of:
    """How one model is trained.

    Attributes:
        width: Channels of the first stage.
        steps: Optimizer steps of a run.
        batch: Images in a step.
        lr: Peak learning rate.
        keeps: Shares of filters.
    """

    width: int
    steps: int
    batch: int = 128
    lr: float = 0.05
    keeps: tuple[float, ...] = (0.5, 0.25)

    def dense(self, model: str) -> Run:
        """The dense run of seed 0."""
        return Run(model, "dense", 1.0, self.width, self.batch, self.steps, self.lr)

    def cells(self, model: str, seeds: int) -> Iterator[Run]:
        """All training runs, one seed after the other."""
        for seed in range(seeds):
            start = replace(self.dense(model), seed=seed)
            yield start
            for keep in self.keeps:
                for method in SPARSE:
                    yield replace(start, method=method, keep=keep)
