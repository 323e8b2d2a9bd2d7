"""Rows of a run as TensorBoard events; an optional extra."""

from __future__ import annotations

from pathlib import Path

from sparsify.errors import UserError
from sparsify.train.history import Row


class TensorBoard:
    """Writes every number of a row as a scalar at its step.

    Args:
        folder: Where the event files go.
        start: Step that the run goes on from; later events of an interrupted run are hidden.

    Raises:
        UserError: The package tensorboard is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                f"TensorBoard events need the package tensorboard ({error}): pip install "
                "'sparsify-ift[tensorboard]', or leave the option out; log.csv holds the same numbers"
            ) from error
        purge = start + 1 if start else None
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def add(self, row: Row) -> None:
        """Writes one row: `test_*` under test/, the rest under training/."""
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                group, _, rest = name.partition("_")
                tag = f"test/{rest}" if group == "test" else f"training/{name}"
                self._writer.add_scalar(tag, value, row["step"])

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()
