"""Trains one run on the product's own road: transform, algorithm, the plain loop.

Learning rates are those of the dense model, as in the papers that are compared; of SμPar only the initial
weights are taken, since LeNet at 1 % learns next to nothing from those of the dense model.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn

import sparsify
from benchmarks.study.images import batches, evaluate
from benchmarks.study.models import IMAGE, LeNet, ResNet
from benchmarks.study.training import Cosine, train
from benchmarks.topology.runs import METHODS, Run
from sparsify import dst
from sparsify.graph.traced import Traced
from sparsify.masks import masked_parameters
from sparsify.scaling import Parameterization

WEIGHT_DECAY = 5e-4
MOMENTUM = 0.9
SPARSE_LAYERS = {"lenet": ("fc1", "fc2", "fc3"), "resnet": ("blocks.*",)}


def execute(run: Run, tested: int | None = None) -> dict[str, Any]:
    """Trains and evaluates.

    Args:
        run: What to train.
        tested: Number of test images; all when None.

    Returns:
        Test loss and accuracy (None where training diverged), training loss, and what became of the masks.
    """
    method = METHODS[run.method]
    model = build(run)
    if run.model == "resnet":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=run.lr, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    if method.algorithm is not None:
        with warnings.catch_warnings():
            # It warns of SμPar's learning rates, which are not taken here.
            warnings.simplefilter("ignore", UserWarning)
            dst.make(
                method.algorithm,
                model,
                optimizer,
                total_steps=run.steps,
                update_every=run.update_every,
                **method.options,
            )
    loss = train(
        model, optimizer, batches(run.batch, run.seed, flip=run.model == "resnet"), Cosine(run.steps)
    )
    measured = {"loss": None, "accuracy": None} if loss is None else evaluate(model, tested)
    return {**measured, "train_loss": loss, **topology(model, run)}


def build(run: Run) -> nn.Module:
    """The dense model itself, or what `sparsify.transform` makes of it."""
    if run.method == "dense":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            return _dense(run)
    method = METHODS[run.method]
    start: dict[str, Any] = {"initial_density": 1.0} if method.begins_dense else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sparsify.transform(
            _traced(run.model, run.width),
            family="masked",
            sparsity=1 - run.density,
            distribution=run.distribution,
            pattern=method.pattern,
            only=_layers(run),
            init="scratch",
            parameterization=cast(Parameterization, run.parameterization),
            seed=run.seed,
            **start,
        )


def topology(model: nn.Module, run: Run) -> dict[str, Any]:
    """Realised density over the layers that were to be sparse, and rows without inputs in each."""
    masks = {fqn: entry.mask for fqn, entry in masked_parameters(model).items()}
    kept = total = 0
    idle: dict[str, int] = {}
    for fqn, parameter in model.named_parameters():
        if parameter.dim() < 2 or not fqn.startswith(("fc", "blocks")):
            continue
        mask = masks.get(fqn, torch.ones_like(parameter, dtype=torch.bool))
        kept += int(torch.count_nonzero(mask))
        total += mask.numel()
        idle[fqn.removesuffix(".weight")] = int((~mask.flatten(1).any(1)).sum())
    return {"kept": kept, "sparse_density": kept / total, "idle_outputs": idle}


def _layers(run: Run) -> tuple[str, ...]:
    return SPARSE_LAYERS[run.model]


def _dense(run: Run) -> nn.Module:
    return LeNet() if run.model == "lenet" else ResNet(run.width, pool=True)


@lru_cache(maxsize=2)
def _traced(model: str, width: int) -> Traced:
    """The trace of a dense model, kept: only shapes and the spread of its weights are read from it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sparsify.trace(LeNet() if model == "lenet" else ResNet(width, pool=True), (IMAGE,))
