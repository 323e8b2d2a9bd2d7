"""The file of finished runs: one JSON line each, so that a study that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

R = TypeVar("R")


class Ledger(Generic[R]):
    """Finished runs and their results, in memory and in a file.

    Reading changes nothing, so that a report can be made while the study runs.

    Args:
        kind: The frozen dataclass that says what a run is, with a field `seed`; dataclasses inside are fine.
        path: JSON lines, read now and appended to later; None keeps everything in memory. A line that a kill
            cut short is left out.

    Raises:
        ValueError: A whole line does not say what a run of this kind is.
    """

    def __init__(self, kind: type[R], path: Path | None = None) -> None:
        self.kind = kind
        self.path = path
        self._results: dict[R, dict[str, Any]] = {}
        if path is not None and path.exists():
            for number, line in enumerate(path.read_text().splitlines(), 1):
                self._read(line, f"{path}, line {number}")

    def _read(self, line: str, where: str) -> None:
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            return
        try:
            run = rebuilt(self.kind, data)
        except TypeError as error:
            raise ValueError(f"{where}: no {self.kind.__name__}: {error}") from error
        self._results[run] = {name: value for name, value in data.items() if name not in _names(self.kind)}

    def add(self, run: R, result: Mapping[str, Any]) -> None:
        """Records a run, in the file with one write.

        Raises:
            ValueError: A result bears the name of a setting, or holds an infinity or a NaN.
        """
        settings = asdict(run)  # type: ignore[call-overload]
        if shared := settings.keys() & result.keys():
            raise ValueError(f"results named like settings of a run: {', '.join(sorted(shared))}")
        line = json.dumps({**settings, **result}, allow_nan=False) + "\n"
        self._results[run] = dict(result)
        if self.path is not None:
            _append(self.path, line.encode())

    def copy(self) -> Ledger[R]:
        """The same runs, in memory only."""
        copied: Ledger[R] = Ledger(self.kind)
        copied._results = dict(self._results)
        return copied

    def __contains__(self, run: object) -> bool:
        return run in self._results

    def __getitem__(self, run: R) -> Mapping[str, Any]:
        return self._results[run]

    def __len__(self) -> int:
        return len(self._results)

    def items(self) -> Iterator[tuple[R, Mapping[str, Any]]]:
        """Runs and their results, in the order of the file."""
        yield from self._results.items()


def rebuilt(kind: type[R], data: Mapping[str, Any]) -> R:
    """A dataclass from what `asdict` and JSON made of it; keys that are no fields are passed over.

    Raises:
        TypeError: A field without a default is missing, or `data` is no object.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"{kind.__name__} is an object, not {data!r}")
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for name in _names(kind) & data.keys():
        value, wanted = data[name], hints[name]
        if is_dataclass(wanted) and isinstance(wanted, type):
            value = rebuilt(wanted, value)
        elif isinstance(value, list):
            value = tuple(value)
        given[name] = value
    return kind(**given)


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.fstat(handle).st_size
        if end and os.pread(handle, 1, end - 1) != b"\n":
            line = b"\n" + line
        os.write(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)
