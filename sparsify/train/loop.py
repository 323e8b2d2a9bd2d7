"""The training loop: one run, from its first step or its last checkpoint to its end."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import UserError
from sparsify.graph.train_mode import RULE
from sparsify.masks import SparseGraphModule, attach_hooks, check_patterns, verify_masks
from sparsify.train import divergence, objective, saving
from sparsify.train.calling import call, output_tensor
from sparsify.train.data import Batch, Data
from sparsify.train.distill import Distillation
from sparsify.train.divergence import TrainingDivergedError
from sparsify.train.history import Row
from sparsify.train.options import Resolved, steps_per_epoch
from sparsify.train.progress import Bar
from sparsify.train.run_log import RunLog
from sparsify.train.setting_up import make_algorithm, make_optimizer

__all__ = ["Run", "TrainingDivergedError"]

_LOGGED_ROWS = 200
_REPORTED = ("groups_alive", "strength")


def _check_training_mode(model: nn.Module) -> None:
    refusals = model.sparsify.refusals if isinstance(model, SparseGraphModule) else ()
    refused = [refusal for refusal in refusals if refusal.rule == RULE]
    if refused:
        raise UserError(
            f"'{refused[0].fqn}' does not train as it did in the user's model: {refused[0].reason}; "
            f"{len(refused) - 1} more such; replace them before the transform"
        )


class Run:
    """One run: everything that changes from step to step.

    Args:
        model: Trained in place.
        data: What to train on.
        options: What decides the numbers.
        loss: Of the options' name.
        output: Where the trained model will be written; checkpoints go to `<output>.ckpt/`.
        device: Where to train.
        distillation: The teacher's part of the loss, if any.
        tensorboard: Whether events are written beside the checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        options: Resolved,
        loss: objective.Loss,
        output: Path | None,
        device: torch.device,
        *,
        distillation: Distillation | None = None,
        tensorboard: bool = False,
    ) -> None:
        _check_training_mode(model)
        if tensorboard and output is None:
            raise UserError("tensorboard needs output=, beside which the events are written")
        torch.manual_seed(options.seed)
        self.model = model.to(device)
        attach_hooks(model)
        self.data, self.options, self.output, self.device = data, options, output, device
        self.objective, self.distillation, self.tensorboard = loss, distillation, tensorboard
        self.optimizer = make_optimizer(model, options)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        example = data.test.batch(torch.arange(min(2, len(data.test)))).to(device)
        self.algorithm = make_algorithm(model, self.optimizer, options, example=example, watch=self._watch)
        self.folder = None if output is None else output.with_name(output.name + ".ckpt")
        self.identity: dict[str, Any] = {**asdict(options), "data": data.digest()}
        self.identity["teacher"] = None if distillation is None else distillation.identity()
        self.step = 0
        self.saved: int | None = None
        self.best: dict[str, float] | None = None
        self.metrics: dict[str, float] = {}
        self.loss = self.gradient_norm = math.nan
        self.seconds = 0.0
        self.rows: list[Row] = []
        self.events: list[dict[str, Any]] = []
        self.order: tuple[int, Tensor] | None = None

    def train(self, progress: bool) -> None:
        """Trains to the last step; the model's training mode is restored.

        Raises:
            TrainingDivergedError: A loss, gradient or weight is not finite any more.
        """
        training = self.model.training
        objective.check_fit(self.model, self.data, self.device, self.objective)
        if self.distillation is not None:
            self.distillation.start(self.model, self.data, self.device)
        self.log = self._open_log()
        started = time.perf_counter() - self.seconds
        try:
            with Bar(self.options.steps, self.step, progress) as bar:
                if self.step == 0 and self.options.evaluates(0):
                    self._evaluate(bar)
                while self.step < self.options.steps:
                    self._one_step(bar)
                    self.seconds = time.perf_counter() - started
                    self._after_step(bar)
        finally:
            self._close_log()
            if self.algorithm is not None:
                self.algorithm.remove()
            if self.distillation is not None:
                self.distillation.stop()
            self.model.train(training)
        verify_masks(self.model)
        check_patterns(self.model)

    def _one_step(self, bar: Bar) -> None:
        factor = self.options.factor(self.step)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor
        self.model.train()
        batch = self._batch()
        self.optimizer.zero_grad()
        self._backward(batch)
        self.gradient_norm = divergence.gradient_norm(self.model, self.options.clip)
        if not math.isfinite(self.gradient_norm):
            bad = divergence.bad_gradients(self.model)
            raise self._diverged(f"the gradient of {divergence.listed(bad) if bad else 'all'} is not finite")
        self.optimizer.step()
        self.step += 1
        bar.step(self.loss, self._density(), len(batch.targets))

    def _backward(self, batch: Batch) -> None:
        """Gradients of the mean loss over the batch, part by part."""
        task, whole = self.data.task, max(1, objective.counted(self.data.task, batch.targets))
        self.loss = 0.0
        for part in batch.parts(self.options.accumulate):
            share = objective.counted(task, part.targets) / whole if self.options.accumulate > 1 else 1.0
            with self._precision():
                output = call(self.model, part)
            loss = self.objective(output, part.targets, training=True)
            if self.distillation is not None:
                loss = self.distillation(loss, output_tensor(output), part, self.data, self._precision())
            self.loss += float(loss.detach()) * share
            if not math.isfinite(self.loss):
                raise self._diverged(f"the training loss is {self.loss}")
            (loss * share).backward()  # type: ignore[no-untyped-call]

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.options.precision == "bf16"
        )

    def _batch(self) -> Batch:
        """The batch of this step: a function of seed and step alone, so that a resumed run sees the same."""
        size, count = self.options.batch_size, len(self.data.train)
        epoch, position = divmod(self.step, steps_per_epoch(self.data, size))
        if self.order is None or self.order[0] != epoch:
            generator = torch.Generator().manual_seed((self.options.seed << 24) + epoch)
            self.order = (epoch, torch.randperm(count, generator=generator))
        return self.data.train.batch(self.order[1][position * size : (position + 1) * size]).to(self.device)

    def _after_step(self, bar: Bar) -> None:
        if self.options.evaluates(self.step):
            self._evaluate(bar)
            self._save()
        elif self.step <= 10 or self.step % max(1, self.options.steps // _LOGGED_ROWS) == 0:
            self.log.add(self._row(), None)

    def _evaluate(self, bar: Bar) -> None:
        bad = divergence.bad_weights(self.model)
        if bad:
            raise self._diverged(f"{divergence.listed(bad)} is not finite")
        self.metrics = self._measured()
        if not math.isfinite(self.metrics["loss"]):
            raise self._diverged(f"the test loss is {self.metrics['loss']}")
        name = objective.headline(self.metrics)
        bar.tested(name, self.metrics[name])
        self.log.add(self._row(), self.metrics)

    def _measured(self) -> dict[str, float]:
        size = max(256, self.options.batch_size)
        return objective.evaluate(
            self.model, self.data, batch_size=size, device=self.device, loss=self.objective
        )

    def _watch(self, moment: str, algorithm: Any) -> None:
        """Measures before and after an abrupt change that a method makes (the hard finish of groups)."""
        if moment == "before":
            self.events.append({"before": self._measured()})
        else:
            self.events[-1] |= {**algorithm.events[-1], "after": self._measured()}

    def _row(self) -> dict[str, Any]:
        factor = self.options.factor(max(0, self.step - 1))
        return {
            "step": self.step,
            "epoch": self.step / steps_per_epoch(self.data, self.options.batch_size),
            "lr": self.options.lr * factor,
            "loss": self.loss if self.step else None,
            "gradient_norm": self.gradient_norm if self.step else None,
            "density": self._density(),
            "seconds": round(self.seconds, 3),
            **{name: getattr(self.algorithm, name) for name in self._reported()},
        }

    def _reported(self) -> tuple[str, ...]:
        """What the method says of itself besides the density."""
        return tuple(name for name in _REPORTED if hasattr(self.algorithm, name))

    def _save(self) -> None:
        density = self._density()
        # A best metric of a denser model (before pruning is done) is no model that the user asked for.
        sparser = self.best is not None and density < 0.99 * self.best["density"]
        improved = sparser or objective.better(self.metrics, self.best)
        if improved:
            self.best = {**self.metrics, "step": self.step, "density": density}
        if self.folder is not None:
            saving.save(self, self.folder, improved=improved)
            self.saved = self.step

    def resume(self) -> None:
        """Takes up the last checkpoint, if there is one.

        Raises:
            UserError: There can be none, or it belongs to another run.
        """
        if self.folder is None:
            raise UserError("resume needs output=, beside which the checkpoints lie")
        saving.resume(self, self.folder)

    def use_best(self) -> None:
        """Puts the weights and masks of the best checkpoint into the model, and its metrics into the run.

        Raises:
            UserError: There are no checkpoints.
        """
        if self.folder is None:
            raise UserError("keep='best' needs output=, beside which the checkpoints lie")
        self.metrics = saving.use_best(self, self.folder)

    def _diverged(self, what: str) -> TrainingDivergedError:
        kept = "no checkpoint was written yet"
        if self.folder is not None and self.saved is not None:
            kept = f"the last good checkpoint is {self.folder / 'last.safetensors'} (step {self.saved})"
        clip = "clip gradients (clip=1.0)" if self.options.clip is None else "clip gradients lower"
        return TrainingDivergedError(
            f"training diverged at step {self.step}: {what}; {kept}. Lower lr (it is {self.options.lr:g}), "
            f"lengthen the warm-up ({self.options.warmup_steps} steps), or {clip}; "
            "if it was the first step, look for NaN in the data"
        )

    def _density(self) -> float:
        return 1.0 if self.algorithm is None else self.algorithm.density

    def _open_log(self) -> RunLog:
        return RunLog(
            self.model,
            self.data.task,
            self.folder,
            rows=self.rows,
            step=self.step,
            extra=self._reported(),
            watched=self.options.method not in ("dense", "static"),
            tensorboard=self.tensorboard,
        )

    def _close_log(self) -> None:
        metric = objective.headline(self.metrics) if self.metrics else "loss"
        name = self.output.name if self.output else ""
        self.log.close(f"{name}: {self.options.method} on {self.data.name}", metric)
