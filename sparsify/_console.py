"""What the commands print: data on stdout, talk on stderr, and one table of exit codes."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsify.errors import ParityError, SparsifyError

EXIT_USER_ERROR = 1
EXIT_CHECK_FAILED = 3
EXIT_BUG = 70
_WIDTH = 120


class Format(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


class CheckFailedError(SparsifyError):
    """A check that the user asked for did not hold (exit code 3)."""


class Output:
    """One command's output: tables or one JSON object on stdout, everything else on stderr.

    Attributes:
        format: Text for people or one JSON object for machines.
        talk: Console on stderr for progress, notes and warnings.
    """

    def __init__(self, output_format: Format) -> None:
        self.format = output_format
        self.talk = Console(stderr=True, highlight=False)
        self._data = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)

    @property
    def is_json(self) -> bool:
        """Whether the result goes out as one JSON object."""
        return self.format is Format.json

    def result(self, data: Mapping[str, Any]) -> None:
        """Prints the JSON object if JSON was asked for; text commands print their tables themselves."""
        if self.is_json:
            sys.stdout.write(json.dumps(finite(data), indent=1) + "\n")

    def say(self, message: str) -> None:
        """Prints a line for people on stderr."""
        self.talk.print(Text(message), soft_wrap=True)

    def warn(self, message: str) -> None:
        """Prints a warning on stderr."""
        self.talk.print(Text("warning: " + message, style="yellow"), soft_wrap=True)

    def line(self, message: str = "") -> None:
        """Prints a line of the result, unless JSON was asked for."""
        if not self.is_json:
            self._data.print(Text(message), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Prints a table of the result, numbers to the right, unless JSON was asked for."""
        if self.is_json:
            return
        table = Table(title=Text(title, style="bold"), title_justify="left")
        for index, name in enumerate(columns):
            numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(show(cell)) for cell in row))
        self._data.print(table)


def finite(value: Any) -> Any:
    """Returns `value` with NaN and infinities as None, since JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def show(value: Any) -> str:
    """Formats a table cell: integers with separators, floats to four digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _is_number(cell: Any) -> bool:
    text = show(cell)
    return cell is None or isinstance(cell, (int, float)) or text[:1].isdigit() or text[:1] in "±+-−"


@contextmanager
def exit_codes(*, debug: bool = False) -> Iterator[None]:
    """Turns errors into messages on stderr and the exit codes of the command line.

    Args:
        debug: Also print the traceback of errors raised on purpose.

    Raises:
        SystemExit: 1 for a user's error, 3 for a failed check, 70 for a bug.
    """
    stderr = Console(stderr=True, highlight=False)
    try:
        yield
    except SparsifyError as error:
        if debug:
            traceback.print_exc()
        stderr.print(
            Text("error: ", style="bold red").append(Text(str(error), style="default")), soft_wrap=True
        )
        code = EXIT_CHECK_FAILED if isinstance(error, (CheckFailedError, ParityError)) else EXIT_USER_ERROR
        raise SystemExit(code) from error
    except OSError as error:
        if debug:
            traceback.print_exc()
        stderr.print(
            Text("error: ", style="bold red").append(Text(_os_message(error), style="default")),
            soft_wrap=True,
        )
        raise SystemExit(EXIT_USER_ERROR) from error
    except (KeyboardInterrupt, BrokenPipeError) as error:
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 0) from error
    except Exception as error:
        traceback.print_exc()
        stderr.print(
            Text("bug: ", style="bold red").append(
                Text("this should not happen; please report it with the traceback above", style="default")
            )
        )
        raise SystemExit(EXIT_BUG) from error


def _os_message(error: OSError) -> str:
    place = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{place}; nothing was written over"
