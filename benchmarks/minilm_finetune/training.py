"""Trains one model on the product's own road: transform, finetune, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsify
from benchmarks.minilm_finetune.network import WORDS, classifier
from benchmarks.minilm_finetune.runs import Run
from sparsify.archive import wrap
from sparsify.train import Data
from sparsify.train.objective import evaluate

_METHODS = {"wide": "rigl"}


def train(run: Run, data: Data, folder: Path, *, pretrained: bool) -> dict[str, Any]:
    """Trains a run and writes its model where latency or a teacher is wanted of it.

    Args:
        run: Any but `latency`.
        data: Functions.
        folder: For the models.
        pretrained: Whether the encoder is MiniLM.

    Returns:
        Accuracy in percent, loss, density, and parameters stored and not zero.
    """
    teacher = dense_model(run, data, folder, pretrained=pretrained) if _needs_dense(run) else None
    if run.method == "one-shot":
        model = _pruned(teacher, run, data)
        metrics = evaluate(model, data, batch_size=256, device=torch.device("cpu"))
    else:
        model = _start(run, data, pretrained=pretrained)
        metrics = _finetuned(model, run, data, teacher if run.distilled else None)
    if run.method == "dense" or (run.seed == 0 and run.method != "one-shot"):
        folder.mkdir(parents=True, exist_ok=True)
        sparsify.save(model, folder / f"{run.name}.pt2")
    masks = [buffer for name, buffer in model.named_buffers() if name.endswith("_mask")]
    stored = sum(parameter.numel() for parameter in model.parameters())
    return {
        "accuracy": round(100 * metrics["accuracy"], 3),
        "loss": metrics["loss"],
        "masked_density": sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks) if masks else 1.0,
        "parameters": stored,
        "nonzero": stored - sum(int((~mask).sum()) for mask in masks),
        "train_examples": len(data.train),
        "test_examples": len(data.test),
    }


def dense_model(run: Run, data: Data, folder: Path, *, pretrained: bool) -> nn.Module:
    """The fine-tuned dense model of the same seed: as it was written, else trained once more."""
    dense = Run("dense", 1.0, False, run.seed, run.steps, run.batch, run.lr)
    path = folder / f"{dense.name}.pt2"
    if not path.exists():
        train(dense, data, folder, pretrained=pretrained)
    return sparsify.load(path)


def example(data: Data) -> dict[str, torch.Tensor]:
    """Two functions, as the model is called."""
    return dict(data.test.batch(torch.arange(2)).kwargs)


def batches(data: Data) -> dict[str, Any]:
    """Which dimensions stay open: the batch. All functions have the same number of tokens."""
    batch = torch.export.Dim("batch")
    return {name: {0: batch} for name in example(data)}


def _needs_dense(run: Run) -> bool:
    return run.distilled or run.method == "one-shot"


def _start(run: Run, data: Data, *, pretrained: bool) -> nn.Module:
    model = classifier(int(data.train.targets.max()) + 1, run.seed, pretrained=pretrained)  # type: ignore[attr-defined]
    if run.method == "dense":
        started: nn.Module = wrap(sparsify.trace(model, (), example(data), dynamic_shapes=batches(data)))
    else:
        started = _pruned(model, run, data)
    # Rare words hardly move in so short a run, and their table is half of the model.
    started.get_parameter(WORDS).requires_grad_(False)
    return started


def _pruned(model: nn.Module | None, run: Run, data: Data) -> nn.Module:
    assert model is not None
    wide = run.method == "wide"
    return sparsify.transform(
        model,
        (),
        example(data),
        dynamic_shapes=batches(data),
        family="wide" if wide else "masked",
        scope="inner" if wide else "all",
        sparsity=1 - run.density,
        init="preserve",
        parameterization="sp",
        initial_density=1.0 if run.method == "gmp" else None,
        seed=run.seed,
    )


def _finetuned(model: nn.Module, run: Run, data: Data, teacher: nn.Module | None) -> dict[str, float]:
    result = sparsify.finetune(
        model,
        data,
        method=_METHODS.get(run.method, run.method),
        steps=run.steps,
        batch_size=run.batch,
        lr=run.lr,
        weight_decay=0.01,
        schedule="linear",
        warmup=0.1,
        clip=1.0,
        evaluate_every=run.steps,
        update_every=max(1, run.steps // 32),
        distill=teacher,
        seed=run.seed,
        progress=False,
    )
    return result.metrics
