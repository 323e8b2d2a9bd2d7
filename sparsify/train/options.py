"""The options of a run, resolved once: nothing is left to a default later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from sparsify import dst
from sparsify.errors import UserError
from sparsify.train.data import Data
from sparsify.train.functions import Function
from sparsify.train.objective import make_loss
from sparsify.train.schedule import SHAPES

METHODS = ("dense", *dst.METHODS)
OPTIMIZERS = ("adamw", "sgd")
PRECISIONS = ("fp32", "bf16")
_DEFAULT_LR = {"adamw": 1e-3, "sgd": 0.1}
_DEFAULT_EPOCHS = 10
_UPDATES = 20
_EARLY = (0.02, 0.1, 0.3)


@dataclass(frozen=True)
class Options:
    """What decides the numbers of a run, besides the model and the data.

    Attributes:
        method: `dense`, or one of `sparsify.dst.METHODS`: static, set, rigl, srigl, sparse-momentum, gmp, ….
        epochs: Passes over the data, 10 when neither this nor `steps` is given.
        steps: Optimizer steps.
        batch_size: Examples a step.
        accumulate: Parts that the batch of a step is computed in, one after the other, to save memory; the
            step is the same up to rounding and batch norms.
        optimizer: `adamw` or `sgd`.
        lr: Base learning rate, as tuned on the dense model; 1e-3 for adamw, 0.1 for sgd by default.
        weight_decay: Base weight decay.
        momentum: Momentum of SGD.
        schedule: `cosine`, `linear` (both towards zero) or `constant`, after the warm-up.
        warmup: Share of the run for the linear warm-up, in [0, 1).
        clip: Largest norm of all gradients together; None for no limit.
        loss: `cross-entropy`, `language`, `mse`, `model` (the loss that the model returns), `module:function`
            or a function of output and targets; None for what the data asks for.
        label_smoothing: Share of the target's probability that is spread over all classes, in [0, 1).
        precision: `fp32`, or `bf16`: the forward pass under autocast, weights and slots in float32.
        distill_weight: α, the teacher's share of the loss, in [0, 1]; used with a teacher only.
        temperature: T of the distillation.
        seed: Seed of data order, dropout and algorithms.
        evaluate_every: Steps between two evaluations, each followed by a checkpoint; by default an epoch, or
            a tenth of the run where that is less. A run that is evaluated before its end is so at step 0 and
            a few times early on as well.
        update_every: Steps between two topology updates; by default 100, or a twentieth of the run where that
            is less.
        drop_fraction: Share of active weights that the first topology update replaces; the method's own
            default if None.
        stop_fraction: Share of the run after which the topology stays; the method's own default if None.
        method_options: Further options of the method by name.
    """

    method: str = "rigl"
    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float | None = None
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float | None = None
    loss: str | Function | None = None
    label_smoothing: float = 0.0
    precision: str = "fp32"
    distill_weight: float = 0.5
    temperature: float = 2.0
    seed: int = 0
    evaluate_every: int | None = None
    update_every: int | None = None
    drop_fraction: float | None = None
    stop_fraction: float | None = None
    method_options: Mapping[str, Any] = field(default_factory=dict)

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
        for name, choices in (
            ("method", METHODS),
            ("optimizer", OPTIMIZERS),
            ("schedule", tuple(SHAPES)),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} '{getattr(self, name)}' is not one of {', '.join(choices)}")
        if self.epochs is not None and self.steps is not None:
            raise UserError("epochs and steps both say how long to train; give one of them")
        for name in ("epochs", "steps", "batch_size", "accumulate", "evaluate_every", "update_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.accumulate > self.batch_size:
            raise UserError(f"accumulate={self.accumulate} parts of a batch of {self.batch_size} are empty")
        if not 0.0 <= self.warmup < 1.0:
            raise UserError(f"warmup is a share of the run in [0, 1), got {self.warmup}")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise UserError(f"label_smoothing is a share in [0, 1), got {self.label_smoothing}")
        if not 0.0 <= self.distill_weight <= 1.0:
            raise UserError(f"distill_weight is a share in [0, 1], got {self.distill_weight}")
        for name in ("lr", "clip", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise UserError(f"{name} must be positive and finite, got {value}")

    def resolve(self, data: Data) -> Resolved:
        """The same options with every default filled in for this data.

        Raises:
            UserError: A loss that does not fit the data, or an option of the method given twice.
        """
        a_pass = steps_per_epoch(data, self.batch_size)
        total = a_pass * (self.epochs or _DEFAULT_EPOCHS) if self.steps is None else self.steps
        filled = replace(
            self,
            epochs=None,
            steps=total,
            lr=_DEFAULT_LR[self.optimizer] if self.lr is None else self.lr,
            loss=make_loss(data, self.loss, self.label_smoothing).name,
            evaluate_every=self.evaluate_every or max(1, min(a_pass, total // 10)),
            update_every=self.update_every or max(1, min(100, total // _UPDATES)),
            method_options=self._method_options(),
        )
        values = asdict(filled)
        for name in ("epochs", "drop_fraction", "stop_fraction"):
            del values[name]
        return Resolved(**values)

    def _method_options(self) -> dict[str, Any]:
        own = dict(self.method_options)
        for name in ("drop_fraction", "stop_fraction"):
            value = getattr(self, name)
            if value is None:
                continue
            if name in own:
                raise UserError(f"{name} is given twice, as an option and as an option of the method")
            own[name] = value
        if self.method == "dense" and own:
            raise UserError(f"method 'dense' changes no topology; it has no option {', '.join(own)}")
        return own


@dataclass(frozen=True)
class Resolved:
    """`Options` without anything left open; the identity of a run together with its data."""

    method: str
    steps: int
    batch_size: int
    accumulate: int
    optimizer: Literal["adamw", "sgd"]
    lr: float
    weight_decay: float
    momentum: float
    schedule: str
    warmup: float
    clip: float | None
    loss: str
    label_smoothing: float
    precision: Literal["fp32", "bf16"]
    distill_weight: float
    temperature: float
    seed: int
    evaluate_every: int
    update_every: int
    method_options: dict[str, Any]

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return round(self.warmup * self.steps)

    def evaluates(self, step: int) -> bool:
        """Whether the model is measured after this many steps: in intervals, at the end, and early on.

        Early are step 0 and a few shares of the first interval, so that a mistake is seen soon; a run that
        asks for one evaluation at its end gets that one only.
        """
        if step == self.steps or (step > 0 and step % self.evaluate_every == 0):
            return True
        if self.evaluate_every >= self.steps:
            return False
        return step == 0 or step in {round(share * self.evaluate_every) for share in _EARLY}

    def factor(self, step: int) -> float:
        """Factor on the learning rate for the step after this many."""
        return SHAPES[self.schedule](step, self.steps, self.warmup_steps)


def steps_per_epoch(data: Data, batch_size: int) -> int:
    """Whole batches in one pass over the training examples, at least one."""
    return max(1, len(data.train) // batch_size)
