"""The progress bar of a run, on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column


class Bar:
    """Shows step, loss, test metrics, density and throughput; says nothing when it is switched off.

    Args:
        total: Optimizer steps of the whole run.
        done: Steps that a resumed run starts with.
        shown: Whether anything is written.
    """

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            BarColumn(bar_width=16),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=total, completed=done)
        self._tested = ""
        self._examples = 0
        self._started = time.perf_counter()

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, loss: float, density: float, examples: int) -> None:
        """Shows one more step over that many examples."""
        self._examples += examples
        rate = self._examples / max(1e-9, time.perf_counter() - self._started)
        text = f"loss {loss:.4f}  density {density:.3f}  {rate:,.0f} examples/s{self._tested}"
        self._progress.update(self._task, advance=1, description=text)

    def tested(self, name: str, value: float) -> None:
        """Shows a test metric from now on."""
        self._tested = f"  test {name.replace('_', ' ')} {value:.4f}"
