"""The file of a sweep: one JSON line a finished cell, after a first line that says what was swept.

A line is appended by one write and synced. A process killed in the middle leaves at most half a last line,
which the next one cuts off; all other cells are kept. The learning rates, densities and seeds are no part of
the first line, so that a grid can be extended in the same file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsify.errors import UserError
from sparsify.train.sweep_cells import Cell, Outcome

_FORMAT = "sparsify.sweep"
_VERSION = 2


class SweepFile:
    """Finished cells, in memory and in a file.

    Args:
        path: The file, or None to keep them in memory only; what it holds is taken up.
        configuration: What decides the numbers of a cell besides the cell itself; JSON-able.

    Raises:
        UserError: The file is of another configuration, or damaged, or no file of a sweep.
    """

    def __init__(self, path: Path | None, configuration: Mapping[str, Any]) -> None:
        self.path = path
        self.outcomes: dict[Cell, Outcome] = {}
        header = {"format": _FORMAT, "version": _VERSION, "configuration": dict(configuration)}
        # As it will be read back: tuples become lists.
        header = json.loads(json.dumps(header))
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path) if path.exists() else []
        if len(lines) < 2:
            # Nothing was finished: options may still be put right.
            path.write_bytes(b"")
            self._append(header)
            return
        _check_header(path, lines[0], header)
        for row in lines[1:]:
            try:
                self.outcomes[Cell(**row["cell"])] = Outcome(**row["outcome"])
            except (KeyError, TypeError) as error:
                raise UserError(f"{path} holds a line that is no cell of a sweep: {error!r}") from error

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Adds a finished cell."""
        self.outcomes[cell] = outcome
        if self.path is not None:
            self._append({"cell": asdict(cell), "outcome": outcome.to_dict()})

    def _append(self, row: Mapping[str, Any]) -> None:
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with Path(str(self.path)).open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[Any]:
    """The lines of a file as JSON; half a last line is cut off the file.

    Raises:
        UserError: Another line cannot be read.
    """
    raw = path.read_bytes()
    end = raw.rfind(b"\n") + 1
    try:
        lines = [json.loads(line) for line in raw[:end].splitlines()]
        known = not lines or (isinstance(lines[0], dict) and lines[0].get("format") == _FORMAT)
    except ValueError:
        known = False
    if not known or (not end and raw and not b'{"format": "sparsify.sweep"'.startswith(raw[:27])):
        raise UserError(f"{path} is not the file of a sweep, or damaged; choose another output")
    if end < len(raw):
        with path.open("rb+") as file:
            file.truncate(end)
            os.fsync(file.fileno())
    return lines


def _check_header(path: Path, found: Any, wanted: Mapping[str, Any]) -> None:
    if found == wanted:
        return
    if found.get("version") != wanted["version"]:
        raise UserError(
            f"{path} is a sweep of format version {found.get('version')}, and this package writes version "
            f"{wanted['version']}; choose another output"
        )
    stored, given = found.get("configuration", {}), wanted["configuration"]
    differing = [
        f"{name} (was {stored.get(name)!r}, is {given.get(name)!r})"
        for name in sorted(stored.keys() | given.keys())
        if stored.get(name) != given.get(name)
    ]
    if not differing:  # an option that is newer than the file, and not given
        return
    raise UserError(
        f"{path} holds cells of another sweep: {', '.join(differing)}; choose another output, or sweep "
        "with the same options"
    )
