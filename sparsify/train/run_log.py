"""What a run writes down on its way: rows, CSV, TensorBoard events, the progress bar's numbers, the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sparsify.train.churn import Churn
from sparsify.train.data import Task
from sparsify.train.history import History, Row, plot
from sparsify.train.objective import METRICS
from sparsify.train.tensorboard import TensorBoard

COLUMNS = ("step", "epoch", "lr", "loss", "gradient_norm", "density", "churn", "seconds")


class RunLog:
    """The rows of one run.

    Args:
        model: Whose masks are watched.
        task: Decides the metrics' columns.
        folder: Where `log.csv`, `log.png` and `tensorboard/` go; None for rows in memory only.
        rows: Rows of the interrupted run that this one goes on with.
        step: The step that it goes on from.
        extra: Names of what the method reports of itself.
        watched: Whether the masks can change.
        tensorboard: Whether events are written.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        folder: Path | None,
        *,
        rows: Sequence[Row],
        step: int,
        extra: Sequence[str],
        watched: bool,
        tensorboard: bool,
    ) -> None:
        events = tensorboard and folder is not None
        self._tensorboard = TensorBoard(folder / "tensorboard", step) if events and folder else None
        tests = tuple(f"test_{name}" for name in METRICS[task])
        self._folder = folder
        self.history = History(
            None if folder is None else folder / "log.csv", (*COLUMNS, *extra, *tests), rows
        )
        self._churn = Churn(model) if watched else None

    def add(self, row: Mapping[str, Any], metrics: Mapping[str, float] | None) -> None:
        """Adds a row; with metrics where the step was evaluated."""
        churn = 0.0 if self._churn is None else self._churn.look()
        full = dict(row) | {"churn": churn}
        full |= {f"test_{name}": value for name, value in (metrics or {}).items()}
        self.history.add(full)
        if self._tensorboard is not None:
            self._tensorboard.add(full)

    def close(self, title: str, metric: str) -> None:
        """Draws the plot and closes the files."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._folder is not None and self.history.rows:
            plot(self.history.rows, self._folder / "log.png", title=title, metric=metric)
