"""Losses and metrics of the three tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.errors import UserError
from sparsify.graph.inputs import InputSpec, TensorInput
from sparsify.masks import SparseGraphModule
from sparsify.train.data import Batch, Data, Task


def output_tensor(output: Any) -> Tensor:
    """The tensor of a model's output that the loss is taken of.

    Args:
        output: A tensor, an output or mapping with `logits`, or a sequence that begins with a tensor.

    Raises:
        UserError: When there is none.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, Sequence) and output and isinstance(output[0], Tensor):
        return output[0]
    raise UserError(
        f"the model returns {type(output).__name__}; training needs a tensor, an output with .logits, "
        "or a sequence that begins with the logits"
    )


def loss_of(task: Task, output: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of a batch.

    Args:
        task: `classification` and `language` take cross-entropy, `regression` the mean squared error.
        output: [N, classes], [N, T, vocabulary] or the shape of the targets.
        targets: int64 [N], int64 [N, T] or float.

    Raises:
        UserError: When the shapes do not fit.
    """
    if task == "regression":
        if output.numel() != targets.numel():
            raise UserError(
                f"the model returns {tuple(output.shape)}, the targets are {tuple(targets.shape)}: "
                "regression needs one value for each target"
            )
        return F.mse_loss(output.reshape(targets.shape).float(), targets)
    logits = _logits(task, output, targets)
    return F.cross_entropy(logits.float(), targets.reshape(-1))


def _logits(task: Task, output: Tensor, targets: Tensor) -> Tensor:
    if output.dim() < 2 or output.shape[:-1] != targets.shape:
        raise UserError(
            f"the model returns {tuple(output.shape)}, the targets are {tuple(targets.shape)}: {task} needs "
            "logits with the classes in the last dimension, one row for each target"
        )
    classes, largest = output.shape[-1], int(targets.max())
    if largest >= classes:
        raise UserError(
            f"the data has class {largest}, but the model has {classes} outputs (0 to {classes - 1})"
        )
    return output.reshape(-1, classes)


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, *, batch_size: int, device: torch.device) -> dict[str, float]:
    """Metrics of a model on the test examples, in eval mode; the training mode is restored.

    Returns:
        `loss` and, by task, `accuracy`, or `bits_per_byte` and `perplexity`.
    """
    training = model.training
    model.eval()
    loss = correct = weight = 0.0
    for start in range(0, len(data.test), batch_size):
        index = torch.arange(start, min(start + batch_size, len(data.test)))
        batch = data.test.batch(index).to(device)
        output = predict(model, batch)
        targets = batch.targets
        loss += float(loss_of(data.task, output, targets)) * targets.numel()
        weight += targets.numel()
        if data.task == "classification":
            correct += float((output.argmax(-1) == targets).sum())
    model.train(training)
    return _metrics(data.task, loss / weight, correct / weight)


@torch.no_grad()
def check_fit(model: nn.Module, data: Data, device: torch.device) -> None:
    """Runs the model on two test examples, in eval mode; the training mode is restored.

    Raises:
        UserError: The model does not take this data, or its output does not fit the targets.
    """
    training = model.training
    batch = data.test.batch(torch.arange(min(2, len(data.test)))).to(device)
    try:
        loss_of(data.task, predict(model.eval(), batch), batch.targets)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        given = (*batch.args, *batch.kwargs.values())
        inputs = ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype)[6:]}" for tensor in given)
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the model does not run on this data, with inputs {inputs}: {reason}") from error
    finally:
        model.train(training)


def _metrics(task: Task, loss: float, accuracy: float) -> dict[str, float]:
    if task == "classification":
        return {"loss": loss, "accuracy": accuracy}
    if task == "language":
        return {"loss": loss, "bits_per_byte": loss / math.log(2), "perplexity": math.exp(min(loss, 700.0))}
    return {"loss": loss}


def better(task: Task, metrics: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
    """Whether metrics beat the best so far: by accuracy where there is one, by loss otherwise."""
    if best is None:
        return True
    if task == "classification":
        return metrics["accuracy"] > best["accuracy"]
    return metrics["loss"] < best["loss"]


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """The output tensor of a model on a batch.

    Raises:
        UserError: When the data has other inputs than the model takes.
    """
    spec = model.sparsify.inputs if isinstance(model, SparseGraphModule) else None
    if spec is None:
        return output_tensor(model(*batch.args, **batch.kwargs))
    args, kwargs = _arguments(spec, batch)
    return output_tensor(model(*args, **kwargs))


def _arguments(spec: InputSpec, batch: Batch) -> tuple[list[Any], dict[str, Any]]:
    """A graph module's arguments: it takes exactly those that it was traced with.

    Positional inputs of the data fill the tensors of the call in order, whether they were passed by position
    or by name when the model was traced; constants are passed as they were.
    """
    given = list(batch.args)
    missing: list[str] = []

    def value(name: str, item: Any) -> Any:
        if not isinstance(item, TensorInput):
            return item
        if name in batch.kwargs:
            return batch.kwargs[name]
        if not given:
            missing.append(name)
            return None
        return given.pop(0)

    args = [value(name, item) for name, item in zip(spec.names, spec.args, strict=True)]
    kwargs = {name: value(name, item) for name, item in spec.kwargs.items()}
    if missing or given or set(batch.kwargs) - set(spec.names) - set(kwargs):
        raise UserError(
            f"the model takes {', '.join((*spec.names, *kwargs))}; the data gives {len(batch.args)} inputs "
            f"by position and {', '.join(sorted(batch.kwargs)) or 'none'} by name"
        )
    return args, kwargs
