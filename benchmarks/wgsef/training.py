"""Trains one run, and narrows what it leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import sparsify
from benchmarks.study.images import batches, evaluate
from benchmarks.study.models import IMAGE
from benchmarks.study.training import Cosine, train
from benchmarks.wgsef.models import build
from benchmarks.wgsef.runs import Run
from sparsify import dst

WEIGHT_DECAY = 5e-4
MOMENTUM = 0.9
ALGORITHMS: dict[str, type[dst.WGSEF] | type[dst.GroupLasso]] = {
    "wgsef": dst.WGSEF,
    "lasso": dst.GroupLasso,
}


def execute(run: Run, tested: int | None = None) -> dict[str, Any]:
    """Trains, evaluates, narrows.

    Args:
        run: What to train.
        tested: Number of test images; all when None.

    Returns:
        Test loss and accuracy at the end (None where training diverged). Of sparse runs also the accuracy
        `before` and `after` the hard finish, `groups_alive` before it, its `step`, λ, the filters `gone`
        from each width, and the narrowed model's accuracy.
    """
    model = build(run)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=run.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    around: dict[str, float | None] = {}
    algorithm = None
    if run.method != "dense":
        algorithm = ALGORITHMS[run.method](
            model,
            optimizer,
            total_steps=run.steps,
            groups="filters",
            keep=run.keep,
            example=IMAGE,
            watch=lambda when, _: around.update({when: _accuracy(model, tested)}),
        )
    loss = train(model, optimizer, batches(run.batch, run.seed, flip=True), Cosine(run.steps, 0.05))
    measured = {"loss": None, "accuracy": None} if loss is None else evaluate(model, tested)
    if algorithm is None or loss is None:
        return {**measured, "train_loss": loss}
    (event,) = algorithm.events
    return {
        **measured,
        **around,
        "train_loss": loss,
        "groups": len(algorithm.groups),
        "k": algorithm.k,
        "groups_alive": event["groups_alive"],
        "finish": event["step"],
        "strength": event["strength"],
        "gone": gone(algorithm.groups),
        **narrowed(model, tested),
    }


def gone(groups: dst.Groups) -> list[int]:
    """Groups of every width that are zero."""
    zero = groups.norms() == 0
    return [int(zero[one.first : one.first + one.count].sum()) for one in groups.sets]


def narrowed(model: nn.Module, tested: int | None) -> dict[str, Any]:
    """What `narrow` makes of a trained model."""
    return {"narrow_accuracy": _accuracy(sparsify.narrow(model.eval(), (IMAGE,)), tested)}


def _accuracy(model: nn.Module, tested: int | None) -> float | None:
    training = model.training
    accuracy = evaluate(model, tested)["accuracy"]
    model.train(training)
    return accuracy
