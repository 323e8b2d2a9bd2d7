"""Trains one run: model, masks and optimizer groups come from sparsify, the loop is the plain one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import sparsify
from benchmarks.sparse_ift.models import build, costs
from benchmarks.sparse_ift.runs import Run
from benchmarks.study import images
from benchmarks.study.training import Cosine, train
from benchmarks.supar.corpus import corpus, windows
from benchmarks.supar.gpt import GPTShape
from sparsify import dst

IMAGE_DECAY = 5e-4
MOMENTUM = 0.9
TEXT_DECAY = 0.1
TEXT_WARMUP = 0.1
CLIP = 1.0
EVALUATION_WINDOWS = 1024
EVALUATION_SEED = 12345


def execute(run: Run, tested: int | None = None) -> dict[str, Any]:
    """Trains and evaluates.

    Args:
        run: What to train.
        tested: Test images, or windows of text; all, or 1024, when None.

    Returns:
        Test loss in nats (None where training diverged), of the ResNet accuracy in percent, training loss,
        and what the model costs.
    """
    text = run.model == "gpt"
    model = build(run)
    counted = costs(model, run)
    if not text:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(model, run)
    if run.method != "none":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dst.make(run.method, model, optimizer, total_steps=run.steps, update_every=run.update_every)
    batches = _text(run) if text else _images(run)
    rate = Cosine(run.steps, TEXT_WARMUP if text else 0.0)
    loss = train(model, optimizer, batches, rate, clip=CLIP if text else None)
    measured: dict[str, Any] = {"loss": None}
    if loss is not None:
        measured = _text_loss(model, tested) if text else images.evaluate(model, tested)
    return {**measured, "train_loss": loss, **counted}


def _optimizer(model: nn.Module, run: Run) -> optim.Optimizer:
    if run.model == "gpt":
        groups = sparsify.param_groups(model, lr=run.lr, weight_decay=TEXT_DECAY)
        return optim.AdamW(groups, lr=run.lr, betas=(0.9, 0.95))
    groups = sparsify.param_groups(model, lr=run.lr, weight_decay=IMAGE_DECAY, optimizer="sgd")
    return optim.SGD(groups, lr=run.lr, momentum=MOMENTUM, nesterov=True)


def _images(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    for inputs, labels in images.batches(run.batch, run.seed, flip=True):
        yield inputs.contiguous(memory_format=torch.channels_last), labels


def _text(run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1000 + run.seed)
    while True:
        yield windows(corpus().train, run.batch, GPTShape().length, generator)


@torch.no_grad()
def _text_loss(model: nn.Module, count: int | None) -> dict[str, float | None]:
    """Nats per byte over windows of the validation text, the same ones for every run."""
    model.eval()
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    inputs, targets = windows(corpus().validation, count or EVALUATION_WINDOWS, GPTShape().length, generator)
    parts = zip(torch.split(inputs, 64), torch.split(targets, 64), strict=True)
    total = sum(
        float(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")) for x, y in parts
    )
    loss = total / targets.numel()
    return {"loss": loss if loss < float("inf") else None}
