"""Trains one run: model, masks and optimizer groups come from sparsify, the loop is the plain one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsify
from benchmarks.study.images import evaluate, images
from benchmarks.study.models import IMAGE, ResNet
from benchmarks.study.training import Linear, train
from benchmarks.supar import gpt
from benchmarks.supar.corpus import corpus, windows
from benchmarks.supar.runs import Cell, Run
from sparsify.graph.traced import Traced
from sparsify.scaling import Parameterization

WARMUP = 0.1
CLIP = 1.0
EVALUATION_WINDOWS = 384
EVALUATION_SEED = 12345
UPDATE_EVERY = 10
GPT_DECAY = 0.1
CNN_DECAY = 5e-4
MOMENTUM = 0.9

TRAINED, TESTED = 20000, 2000
"""Images of the CNN."""

Batches = Iterator[tuple[Tensor, Tensor]]


def execute(run: Run) -> dict[str, Any]:
    """Trains and evaluates; returns `loss`, None where it diverged, and what else is worth keeping."""
    model, steps = build(run.cell, run.seed), run.cell.steps
    optimizer = make_optimizer(model, run)
    batches, tested = _text(run) if run.cell.model == "gpt" else _images(run)
    if run.cell.method == "rigl":
        with warnings.catch_warnings():
            # What it warns of, rates that are too large under the full correction, is what is measured.
            warnings.simplefilter("ignore", UserWarning)
            sparsify.dst.RigL(model, optimizer, total_steps=steps, update_every=UPDATE_EVERY)
    loss = train(model, optimizer, batches, Linear(steps, WARMUP), clip=CLIP)
    return {
        **({"loss": None} if loss is None else tested(model)),
        "train_loss": loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def build(cell: Cell, seed: int) -> nn.Module:
    """The dense base itself at density 1, else what `sparsify.transform` makes of it."""
    if cell.density == 1.0:
        return _base(cell, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sparsify.transform(
            _traced(cell.model, cell.width, cell.sigma, cell.alpha_in, cell.alpha_out),
            family=cell.family,
            sparsity=1 - cell.density,
            init="scratch",
            parameterization=cast(Parameterization, cell.parameterization),
            density_exponent=cell.gamma if cell.parameterization == "supar" else None,
            seed=seed,
            base_std=_spread(cell),
            base=_proxy(cell),
            lr_behind_batchnorm=cell.rate_behind_norm,
        )


def _proxy(cell: Cell) -> nn.Module | None:
    """The small dense model that σ, α and the learning rate were tuned on; SP knows of no base."""
    if not cell.base_width or cell.parameterization == "sp":
        return None
    return _base(replace(cell, width=cell.base_width), 0)


def _base(cell: Cell, seed: int) -> nn.Module:
    if cell.model == "cnn":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return ResNet(cell.width)
    model = gpt.GPT(gpt.GPTShape(width=cell.width), cell.alpha_in, cell.alpha_out)
    gpt.initialise(model, cell.sigma, seed)
    return model


def _spread(cell: Cell) -> dict[str, float] | None:
    if cell.model == "cnn":
        return None
    return gpt.standard_deviations(cast(gpt.GPT, _base(cell, 0)), cell.sigma)


@lru_cache(maxsize=4)
def _traced(model: str, width: int, sigma: float, alpha_in: float, alpha_out: float) -> Traced:
    """The trace of a base, kept: only widths and multipliers are read from it, and σ of the embeddings."""
    cell = Cell(model=model, width=width, sigma=sigma, alpha_in=alpha_in, alpha_out=alpha_out)
    example = torch.zeros(2, gpt.GPTShape().length, dtype=torch.long) if model == "gpt" else IMAGE
    return sparsify.trace(_base(cell, 0), (example,))


def make_optimizer(model: nn.Module, run: Run) -> torch.optim.Optimizer:
    """AdamW for the GPT, SGD with momentum for the CNN, in the groups of the stored parameterization."""
    lr = 2.0**run.log2_lr
    if run.cell.model == "gpt":
        groups = sparsify.param_groups(model, lr=lr, weight_decay=GPT_DECAY)
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8)
    groups = sparsify.param_groups(model, lr=lr, weight_decay=CNN_DECAY, optimizer="sgd")
    return torch.optim.SGD(groups, lr=lr, momentum=MOMENTUM)


def _text(run: Run) -> tuple[Batches, Callable[[nn.Module], dict[str, Any]]]:
    text, length = corpus(), gpt.GPTShape().length

    def batches() -> Batches:
        generator = torch.Generator().manual_seed(1000 + run.seed)
        while True:
            yield windows(text.train, run.cell.batch, length, generator)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, Any]:
        model.eval()
        generator = torch.Generator().manual_seed(EVALUATION_SEED)
        inputs, targets = windows(text.validation, EVALUATION_WINDOWS, length, generator)
        losses = [
            float(F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
            for x, y in zip(torch.split(inputs, 32), torch.split(targets, 32), strict=True)
        ]
        loss = sum(losses) / len(losses)
        return {"loss": loss if math.isfinite(loss) else None}

    return batches(), evaluate


def _images(run: Run) -> tuple[Batches, Callable[[nn.Module], dict[str, Any]]]:
    data = images()

    def batches() -> Batches:
        generator = torch.Generator().manual_seed(1000 + run.seed)
        while True:
            picked = torch.randint(0, TRAINED, (run.cell.batch,), generator=generator)
            yield data.train[picked], data.train_labels[picked]

    def tested(model: nn.Module) -> dict[str, Any]:
        found = evaluate(model, TESTED)
        return {"loss": found["loss"], "accuracy": cast(float, found["accuracy"]) / 100}

    return batches(), tested
