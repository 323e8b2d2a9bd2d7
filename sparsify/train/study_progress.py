"""The progress bar of a study of many runs, on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class StudyBar:
    """Counts finished runs and says what the last one was; silent when it is switched off.

    Args:
        total: Runs in all.
        shown: Whether anything is written.
        done: Runs that were finished before.
    """

    def __init__(self, total: int, shown: bool, done: int = 0) -> None:
        self._progress = Progress(
            TextColumn("run"),
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> StudyBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def finished(self, description: str) -> None:
        """Counts one run."""
        self._progress.update(self._task, advance=1, description=description)

    def says(self, description: str) -> None:
        """Says what is done before the next run."""
        self._progress.update(self._task, description=description)
