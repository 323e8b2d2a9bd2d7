"""What a run minimises and measures: losses by name or function, and the metrics of the three tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.errors import UserError
from sparsify.train.calling import call, output_tensor
from sparsify.train.data import Data, Task
from sparsify.train.functions import Function, import_function

LOSSES = {"cross-entropy": "classification", "language": "language", "mse": "regression"}
IGNORED = -100
"""Class number of targets that count neither in losses nor in metrics (padding), as torch has it."""

_DEFAULT = {task: name for name, task in LOSSES.items()}


@dataclass(frozen=True)
class Loss:
    """The loss of a run.

    Attributes:
        name: `cross-entropy`, `language`, `mse`, `model` (the loss that the model returns itself), or
            `module:function`.
        task: Of the data; decides the metrics.
        label_smoothing: Share of the target's probability that is spread over all classes, in training only.
        function: For `module:function`: takes the model's whole output and the targets, returns the mean.
    """

    name: str
    task: Task
    label_smoothing: float = 0.0
    function: Function | None = None

    def __call__(self, output: Any, targets: Tensor, *, training: bool) -> Tensor:
        """Mean loss of a batch, a scalar.

        Args:
            output: What the model returned.
            targets: int64 [N] or [N, T], or float.
            training: Whether labels are smoothed.

        Raises:
            UserError: When the shapes do not fit, or the function returns no scalar.
        """
        if self.function is not None:
            return _scalar(self.function(output, targets), self.name)
        if self.name == "model":
            return _scalar(_own_loss(output), "model")
        smoothing = self.label_smoothing if training else 0.0
        return loss_of(self.task, output_tensor(output), targets, label_smoothing=smoothing)


def make_loss(data: Data, loss: str | Function | None, label_smoothing: float) -> Loss:
    """The loss of a name or function, for this data; None is the data's own.

    Raises:
        UserError: An unknown name, one that does not fit the data, or smoothing without classes.
    """
    own = _DEFAULT[data.task]
    if callable(loss):
        name, function = f"{loss.__module__}:{loss.__qualname__}", loss
    elif loss is not None and ":" in loss:
        name, function = loss, import_function(loss, "loss")
    else:
        name, function = loss or own, None
        fits = {own, "model"} | ({"cross-entropy"} if data.task == "language" else set())
        if name not in LOSSES and name != "model":
            raise UserError(
                f"unknown loss '{name}'; known are {', '.join(LOSSES)}, model and module:function"
            )
        if name not in fits:
            raise UserError(
                f"loss '{name}' does not fit {data.name}, which is {data.task} data ({own}); for a loss of "
                "your own give module:function"
            )
    if label_smoothing and (function is not None or name == "model" or data.task == "regression"):
        raise UserError(f"label_smoothing applies to cross-entropy and language, not to the loss '{name}'")
    return Loss(name, data.task, label_smoothing, function)


def loss_of(task: Task, output: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean loss of a batch by its task.

    Args:
        task: `classification` and `language` take cross-entropy, `regression` the mean squared error.
        output: [N, classes], [N, T, vocabulary] or the shape of the targets.
        targets: int64 [N], int64 [N, T] or float; class -100 is left out.
        label_smoothing: Share of the target's probability that is spread over all classes.

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
    return F.cross_entropy(logits.float(), targets.reshape(-1), label_smoothing=label_smoothing)


def counted(task: Task, targets: Tensor) -> int:
    """How many targets a mean loss is taken over."""
    return targets.numel() if task == "regression" else int((targets != IGNORED).sum())


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


def _own_loss(output: Any) -> Any:
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if found is None and isinstance(output, tuple | list) and output and isinstance(output[0], Tensor):
        found = output[0] if output[0].dim() == 0 else None
    if found is None:
        raise UserError(
            f"the model returns {type(output).__name__} without a loss: loss 'model' needs an output with "
            ".loss, a mapping with 'loss', or a sequence that begins with it (the model's labels are then an "
            "input by name)"
        )
    return found


def _scalar(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise UserError(f"loss '{name}' returned {what}; it must return the mean over the batch, a scalar tensor")


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data, *, batch_size: int, device: torch.device, loss: Loss | None = None
) -> dict[str, float]:
    """Metrics over the test examples, in eval mode and float32; the training mode is restored.

    Args:
        model: The model.
        data: Its `test` is used.
        batch_size: Examples at a time.
        device: Where the model is.
        loss: The loss; the task's own if None.

    Returns:
        `loss`, and for classes `accuracy`, for language `bits_per_byte` and `perplexity`. Accuracy is left
        out where a loss of the user's own goes with outputs that are no logits.
    """
    chosen = loss or make_loss(data, None, 0.0)
    training = model.training
    model.eval()
    total, weight, correct, judged = 0.0, 0, 0.0, data.task == "classification"
    for start in range(0, len(data.test), batch_size):
        index = torch.arange(start, min(start + batch_size, len(data.test)))
        batch = data.test.batch(index).to(device)
        output = call(model, batch)
        count = counted(data.task, batch.targets)
        if count == 0:
            continue
        total += float(chosen(output, batch.targets, training=False)) * count
        weight += count
        if judged:
            logits = output_tensor(output)
            judged = logits.shape[:-1] == batch.targets.shape
            correct += float((logits.argmax(-1) == batch.targets).sum()) if judged else 0.0
    model.train(training)
    if weight == 0:
        raise UserError(f"all test targets of {data.name} are {IGNORED}: nothing can be measured")
    return _metrics(data.task, total / weight, correct / weight if judged else None)


@torch.no_grad()
def check_fit(model: nn.Module, data: Data, device: torch.device, loss: Loss | None = None) -> None:
    """Runs the model on two test examples, in eval mode; the training mode is restored.

    Raises:
        UserError: The model does not take this data, or its output does not fit the targets.
    """
    chosen = loss or make_loss(data, None, 0.0)
    training = model.training
    batch = data.test.batch(torch.arange(min(2, len(data.test)))).to(device)
    try:
        chosen(call(model.eval(), batch), batch.targets, training=False)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        given = (*batch.args, *batch.kwargs.values())
        inputs = ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype)[6:]}" for tensor in given)
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"the model does not run on this data, with inputs {inputs}: {reason}") from error
    finally:
        model.train(training)


def _metrics(task: Task, loss: float, accuracy: float | None) -> dict[str, float]:
    if task == "classification" and accuracy is not None:
        return {"loss": loss, "accuracy": accuracy}
    if task == "language":
        return {"loss": loss, "bits_per_byte": loss / math.log(2), "perplexity": math.exp(min(loss, 700.0))}
    return {"loss": loss}


METRICS: dict[Task, tuple[str, ...]] = {
    "classification": ("loss", "accuracy"),
    "language": ("loss", "bits_per_byte", "perplexity"),
    "regression": ("loss",),
}


def headline(metrics: Mapping[str, float]) -> str:
    """The metric that people look at first."""
    return next(name for name in ("accuracy", "bits_per_byte", "loss") if name in metrics)


def better(metrics: Mapping[str, float], best: Mapping[str, float] | None) -> bool:
    """Whether metrics beat the best so far: by accuracy where there is one, by loss otherwise."""
    if best is None:
        return True
    if "accuracy" in metrics:
        return metrics["accuracy"] > best["accuracy"]
    return metrics["loss"] < best["loss"]
