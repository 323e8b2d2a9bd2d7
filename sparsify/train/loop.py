"""The training loop: one run, from its first step or its last checkpoint to its end."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import UserError
from sparsify.graph.train_mode import RULE
from sparsify.masks import SparseGraphModule, attach_hooks, verify_masks
from sparsify.train import checkpoint, objective
from sparsify.train.data import Batch, Data
from sparsify.train.history import History, Row, plot
from sparsify.train.options import Resolved, make_algorithm, make_optimizer, steps_per_epoch
from sparsify.train.progress import Bar
from sparsify.train.schedule import cosine

_LOGGED_ROWS = 200
_METRIC = {"classification": "accuracy", "language": "bits_per_byte", "regression": "loss"}


def _check_training_mode(model: nn.Module) -> None:
    refusals = model.sparsify.refusals if isinstance(model, SparseGraphModule) else ()
    refused = [refusal for refusal in refusals if refusal.rule == RULE]
    if refused:
        raise UserError(
            f"'{refused[0].fqn}' does not train as it did in the user's model: {refused[0].reason}; "
            f"{len(refused) - 1} more such; replace them before the transform"
        )


class TrainingDivergedError(UserError):
    """A loss that is not finite: the numbers of the run are of no use any more."""


class Run:
    """One run: everything that changes from step to step.

    Args:
        model: Trained in place.
        data: What to train on.
        options: What decides the numbers.
        output: Where the trained model will be written; checkpoints go to `<output>.ckpt/`.
        device: Where to train.
    """

    def __init__(
        self, model: nn.Module, data: Data, options: Resolved, output: Path | None, device: torch.device
    ) -> None:
        _check_training_mode(model)
        torch.manual_seed(options.seed)
        self.model = model.to(device)
        attach_hooks(model)
        self.data, self.options, self.output, self.device = data, options, output, device
        self.optimizer = make_optimizer(model, options)
        self.base_lrs = [group["lr"] for group in self.optimizer.param_groups]
        self.algorithm = make_algorithm(model, self.optimizer, options)
        self.folder = None if output is None else output.with_name(output.name + ".ckpt")
        self.identity = {**asdict(options), "data": data.digest()}
        self.step = 0
        self.saved: int | None = None
        self.best: dict[str, float] | None = None
        self.metrics: dict[str, float] = {}
        self.loss = math.nan
        self.seconds = 0.0
        self.rows: list[Row] = []
        self.order: tuple[int, Tensor] | None = None

    def train(self, progress: bool) -> None:
        """Trains to the last step; the model's training mode is restored.

        Raises:
            TrainingDivergedError: The loss is not finite any more.
        """
        training = self.model.training
        objective.check_fit(self.model, self.data, self.device)
        self.history = History(self._file("log.csv"), self._columns(), self.rows)
        started = time.perf_counter() - self.seconds
        try:
            with Bar(self.options.steps, self.step, progress) as bar:
                while self.step < self.options.steps:
                    self._one_step(bar)
                    self.seconds = time.perf_counter() - started
                    self._after_step(bar)
        finally:
            self._draw()
            if self.algorithm is not None:
                self.algorithm.remove()
            self.model.train(training)
        verify_masks(self.model)

    def _one_step(self, bar: Bar) -> None:
        factor = cosine(self.step, self.options.steps, self.options.warmup_steps)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor
        self.model.train()
        batch = self._batch()
        self.optimizer.zero_grad()
        loss = objective.loss_of(self.data.task, objective.predict(self.model, batch), batch.targets)
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise self._diverged(f"the training loss is {self.loss}")
        loss.backward()  # type: ignore[no-untyped-call]
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)
        self.optimizer.step()
        self.step += 1
        bar.step(self.loss, self._density(), len(batch.targets))

    def _batch(self) -> Batch:
        """The batch of this step: a function of seed and step alone, so that a resumed run sees the same."""
        size, count = self.options.batch_size, len(self.data.train)
        epoch, position = divmod(self.step, steps_per_epoch(self.data, size))
        if self.order is None or self.order[0] != epoch:
            generator = torch.Generator().manual_seed((self.options.seed << 24) + epoch)
            self.order = (epoch, torch.randperm(count, generator=generator))
        return self.data.train.batch(self.order[1][position * size : (position + 1) * size]).to(self.device)

    def _after_step(self, bar: Bar) -> None:
        final = self.step == self.options.steps
        tests = final or self.step % self.options.evaluate_every == 0
        if tests:
            self.metrics = objective.evaluate(
                self.model, self.data, batch_size=max(256, self.options.batch_size), device=self.device
            )
            if not math.isfinite(self.metrics["loss"]):
                raise self._diverged(f"the test loss is {self.metrics['loss']}")
            bar.tested(_METRIC[self.data.task], self.metrics[_METRIC[self.data.task]])
        interval = max(1, self.options.steps // _LOGGED_ROWS)
        if tests or self.step <= 10 or self.step % interval == 0:
            self._log(tests)
        if tests:
            self._save()

    def _log(self, tested: bool) -> None:
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / steps_per_epoch(self.data, self.options.batch_size),
            "lr": self.optimizer.param_groups[0]["lr"] / self.base_lrs[0] * self.options.lr,
            "loss": self.loss,
            "density": self._density(),
            "seconds": round(self.seconds, 3),
        }
        if tested:
            row |= {f"test_{name}": value for name, value in self.metrics.items()}
        self.history.add(row)

    def _columns(self) -> tuple[str, ...]:
        metrics = {
            "classification": ("accuracy",),
            "language": ("bits_per_byte", "perplexity"),
            "regression": (),
        }
        tests = tuple(f"test_{name}" for name in ("loss", *metrics[self.data.task]))
        return ("step", "epoch", "lr", "loss", "density", "seconds", *tests)

    def _save(self) -> None:
        improved = objective.better(self.data.task, self.metrics, self.best)
        if improved:
            self.best = {**self.metrics, "step": self.step}
        if self.folder is None:
            return
        state = self._state()
        if improved:
            checkpoint.write(self.folder / "best.safetensors", state)
        checkpoint.write(self.folder / "last.safetensors", state)
        self.saved = self.step

    def _state(self) -> dict[str, Any]:
        return {
            "run": self.identity,
            "step": self.step,
            "loss": self.loss,
            "metrics": self.metrics,
            "best": self.best,
            "seconds": self.seconds,
            "rows": [dict(row) for row in self.history.rows],
            "model": checkpoint.model_state(self.model),
            "optimizer": checkpoint.optimizer_state(self.optimizer),
            "algorithm": None if self.algorithm is None else self.algorithm.state_dict(),
            "random": checkpoint.random_state(),
        }

    def resume(self) -> None:
        """Takes up the last checkpoint, if there is one.

        Raises:
            UserError: There can be none, or it belongs to another run.
        """
        path = self._file("last.safetensors")
        if path is None:
            raise UserError("resume needs output=, beside which the checkpoints lie")
        if not path.is_file():
            return
        state = checkpoint.read(path)
        self._check_identity(state["run"], path)
        checkpoint.load_model_state(self.model, state["model"], path)
        checkpoint.load_optimizer_state(self.optimizer, state["optimizer"])
        if self.algorithm is not None:
            self.algorithm.load_state_dict(state["algorithm"])
        checkpoint.load_random_state(state["random"])
        self.step = self.saved = state["step"]
        self.loss, self.metrics, self.best = state["loss"], state["metrics"], state["best"]
        self.seconds, self.rows = state["seconds"], state["rows"]

    def _check_identity(self, stored: Mapping[str, Any], path: Path) -> None:
        differing = [
            f"{name} (was {stored.get(name)!r}, is {self.identity.get(name)!r})"
            for name in sorted(stored.keys() | self.identity.keys())
            if stored.get(name) != self.identity.get(name)
        ]
        if differing:
            raise UserError(
                f"checkpoint {path} belongs to a run with other options: {', '.join(differing)}; resume with "
                "the same options, or start again without resume"
            )

    def _diverged(self, what: str) -> TrainingDivergedError:
        kept = "no checkpoint was written yet"
        if self.folder is not None and self.saved is not None:
            kept = f"the last good checkpoint is {self.folder / 'last.safetensors'} (step {self.saved})"
        return TrainingDivergedError(
            f"training diverged at step {self.step}: {what}; {kept}. Lower lr (it is {self.options.lr:g}), "
            f"lengthen the warm-up ({self.options.warmup_steps} steps), or clip gradients (clip=1.0); "
            "if it was the first step, look for NaN in the data"
        )

    def _density(self) -> float:
        return 1.0 if self.algorithm is None else self.algorithm.density

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name

    def _draw(self) -> None:
        path = self._file("log.png")
        if path is not None and self.history.rows:
            title = f"{self.output.name if self.output else ''}: {self.options.method} on {self.data.name}"
            plot(self.history.rows, path, title=title, metric=_METRIC[self.data.task])
