"""The options of a run, resolved once: nothing is left to a default later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import nn, optim

from sparsify import dst
from sparsify.errors import UserError
from sparsify.masks import masked_parameters
from sparsify.scaling import param_groups
from sparsify.train.data import Data

METHODS = ("dense", "static", "rigl")
OPTIMIZERS = ("adamw", "sgd")
_DEFAULT_LR = {"adamw": 1e-3, "sgd": 0.1}
_DEFAULT_EPOCHS = 10
_UPDATES = 20


@dataclass(frozen=True)
class Options:
    """What decides the numbers of a run, besides the model and the data.

    Attributes:
        method: `dense`, `static` or `rigl`.
        epochs: Passes over the data, 10 when neither this nor `steps` is given.
        steps: Optimizer steps.
        batch_size: Examples a step.
        optimizer: `adamw` or `sgd`.
        lr: Base learning rate, as tuned on the dense model; 1e-3 for adamw, 0.1 for sgd by default.
        weight_decay: Base weight decay.
        momentum: Momentum of SGD.
        warmup: Share of the run for the linear warm-up, in [0, 1).
        clip: Largest norm of all gradients together; None for no limit.
        seed: Seed of data order, dropout and algorithms.
        evaluate_every: Steps between two evaluations, each followed by a checkpoint; by default an epoch, or
            a tenth of the run where that is less.
        update_every: Steps between two topology updates; by default 100, or a twentieth of the run where that
            is less.
        drop_fraction: Share of active weights that the first topology update replaces.
        stop_fraction: Share of the run after which the topology stays.
    """

    method: str = "rigl"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup: float = 0.05
    clip: float | None = None
    seed: int = 0
    evaluate_every: int | None = None
    update_every: int | None = None
    drop_fraction: float = 0.3
    stop_fraction: float = 0.75

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Options by name.

        Raises:
            UserError: When a name is unknown, a value is out of range, or two contradict each other.
        """
        known = [entry.name for entry in fields(cls)]
        for name in given:
            if name not in known:
                raise UserError(f"finetune has no option '{name}'; it has {', '.join(known)}")
        options = cls(**given)
        options._check()
        return options

    def _check(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"method '{self.method}' is not one of {', '.join(METHODS)}")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer '{self.optimizer}' is not one of {', '.join(OPTIMIZERS)}")
        if self.epochs is not None and self.steps is not None:
            raise UserError("epochs and steps both say how long to train; give one of them")
        for name in ("epochs", "steps", "batch_size", "evaluate_every", "update_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if not 0.0 <= self.warmup < 1.0:
            raise UserError(f"warmup is a share of the run in [0, 1), got {self.warmup}")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise UserError(f"{name} must be positive and finite, got {value}")

    def resolve(self, data: Data) -> Resolved:
        """The same options with every default filled in for this data."""
        a_pass = steps_per_epoch(data, self.batch_size)
        total = a_pass * (self.epochs or _DEFAULT_EPOCHS) if self.steps is None else self.steps
        filled = replace(
            self,
            epochs=None,
            steps=total,
            lr=_DEFAULT_LR[self.optimizer] if self.lr is None else self.lr,
            evaluate_every=self.evaluate_every or max(1, min(a_pass, total // 10)),
            update_every=self.update_every or max(1, min(100, total // _UPDATES)),
        )
        values = asdict(filled)
        del values["epochs"]
        return Resolved(**values)


@dataclass(frozen=True)
class Resolved:
    """`Options` without anything left open; the identity of a run together with its data."""

    method: Literal["dense", "static", "rigl"]
    steps: int
    batch_size: int
    optimizer: Literal["adamw", "sgd"]
    lr: float
    weight_decay: float
    momentum: float
    warmup: float
    clip: float | None
    seed: int
    evaluate_every: int
    update_every: int
    drop_fraction: float
    stop_fraction: float

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return round(self.warmup * self.steps)


def steps_per_epoch(data: Data, batch_size: int) -> int:
    """Whole batches in one pass over the training examples, at least one."""
    return max(1, len(data.train) // batch_size)


def make_optimizer(model: nn.Module, options: Resolved) -> optim.Optimizer:
    """The optimizer, on the groups of the model's stored parameterization.

    Raises:
        UserError: When nothing is trainable.
    """
    groups = param_groups(
        model, lr=options.lr, weight_decay=options.weight_decay, optimizer=options.optimizer
    )
    if not groups:
        raise UserError("the model has no trainable parameter")
    if options.optimizer == "sgd":
        return optim.SGD(groups, lr=options.lr, momentum=options.momentum)
    return optim.AdamW(groups, lr=options.lr)


def make_algorithm(model: nn.Module, optimizer: optim.Optimizer, options: Resolved) -> dst.Algorithm | None:
    """The sparse training algorithm, or None for `dense`.

    Raises:
        UserError: When the method does not fit the model: masks and `dense`, or none and another.
    """
    masked = bool(masked_parameters(model))
    if options.method == "dense":
        if masked:
            raise UserError("the model has masks, which 'dense' would ignore; use method 'static' or 'rigl'")
        return None
    if not masked:
        raise UserError(f"the model has no masks for '{options.method}'; transform it first, or use 'dense'")
    if options.method == "static":
        return dst.Static(model, optimizer, total_steps=options.steps, update_every=options.update_every)
    return dst.RigL(
        model,
        optimizer,
        total_steps=options.steps,
        update_every=options.update_every,
        drop_fraction=options.drop_fraction,
        stop_fraction=options.stop_fraction,
        seed=options.seed,
    )


def choose_device(device: str) -> torch.device:
    """The device of a name; `auto` takes a GPU where there is one.

    Raises:
        UserError: When torch knows no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device '{device}': {error}") from error
