"""The state of a run as a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.errors import UserError
from sparsify.train import checkpoint

if TYPE_CHECKING:
    from sparsify.train.loop import Run

LAST, BEST = "last.safetensors", "best.safetensors"


def save(run: Run, folder: Path, *, improved: bool) -> None:
    """Writes the last checkpoint, and the best one where the run improved."""
    state = {
        "run": run.identity,
        "step": run.step,
        "loss": run.loss,
        "metrics": run.metrics,
        "best": run.best,
        "seconds": run.seconds,
        "events": run.events,
        "rows": [dict(row) for row in run.log.history.rows],
        "model": checkpoint.model_state(run.model),
        "optimizer": checkpoint.optimizer_state(run.optimizer),
        "algorithm": None if run.algorithm is None else run.algorithm.state_dict(),
        "random": checkpoint.random_state(),
    }
    if improved:
        checkpoint.write(folder / BEST, state)
    checkpoint.write(folder / LAST, state)


def resume(run: Run, folder: Path) -> None:
    """Takes up the last checkpoint, if there is one.

    Raises:
        UserError: It belongs to another run, or is damaged.
    """
    path = folder / LAST
    if not path.is_file():
        return
    state = checkpoint.read(path)
    _check_identity(run.identity, state["run"], path)
    checkpoint.load_model_state(run.model, state["model"], path)
    checkpoint.load_optimizer_state(run.optimizer, state["optimizer"])
    if run.algorithm is not None:
        run.algorithm.load_state_dict(state["algorithm"])
    checkpoint.load_random_state(state["random"])
    run.step = run.saved = state["step"]
    run.loss, run.metrics, run.best = state["loss"], state["metrics"], state["best"]
    run.seconds, run.rows, run.events = state["seconds"], state["rows"], state["events"]


def use_best(run: Run, folder: Path) -> dict[str, float]:
    """Puts weights and masks of the best checkpoint into the model.

    Returns:
        The metrics that it had.
    """
    state = checkpoint.read(folder / BEST)
    _check_identity(run.identity, state["run"], folder / BEST)
    checkpoint.load_model_state(run.model, state["model"], folder / BEST)
    metrics: dict[str, float] = state["metrics"]
    return metrics


def _check_identity(own: Mapping[str, Any], stored: Mapping[str, Any], path: Path) -> None:
    differing = [
        f"{name} (was {stored.get(name)!r}, is {own.get(name)!r})"
        for name in sorted(stored.keys() | own.keys())
        if stored.get(name) != own.get(name)
    ]
    if differing:
        raise UserError(
            f"checkpoint {path} belongs to a run with other options: {', '.join(differing)}; resume with "
            "the same options, or start again without resume"
        )
