"""Worker processes of a sweep, each with one thread and a model of its own.

A worker reads JSON lines: first the setup, then one cell at a time, and answers each with one line. It ends
when its input does, so that none is left behind when the sweep is killed.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from sparsify.errors import UserError
from sparsify.train.data import Data
from sparsify.train.sweep_cells import Cell, Outcome, Training, run_cell, set_threads
from sparsify.train.variants import Variants

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SHOWN = 2000


class Workers:
    """A number of worker processes.

    Args:
        command: The program, which calls `serve`.
        setup: JSON-able; its first line.
        count: Number of processes.
    """

    def __init__(self, command: Sequence[str], setup: Mapping[str, Any], count: int) -> None:
        self._command, self._setup, self._count = list(command), dict(setup), count
        self._processes: list[subprocess.Popen[str]] = []

    def run(self, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Outcome]]:
        """Yields cells with their outcomes as they finish.

        Raises:
            UserError: A worker ended before its work did; the message has the last lines of its errors.
        """
        waiting: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Cell, Outcome] | UserError] = queue.SimpleQueue()
        for cell in cells:
            waiting.put(cell)
        try:
            for _ in range(min(self._count, len(cells))):
                threading.Thread(target=self._drive, args=(waiting, done), daemon=True).start()
            for _ in cells:
                found = done.get()
                if isinstance(found, UserError):
                    raise found
                yield found
        finally:
            for process in self._processes:
                process.kill()
                process.wait()

    def _drive(
        self,
        waiting: queue.SimpleQueue[Cell],
        done: queue.SimpleQueue[tuple[Cell, Outcome] | UserError],
    ) -> None:
        """Feeds one process until no cell is left; runs in a thread of its own."""
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, "1")}
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
            self._processes.append(process)
            try:
                _write(process.stdin, self._setup)
                while True:
                    try:
                        cell = waiting.get_nowait()
                    except queue.Empty:
                        break
                    _write(process.stdin, asdict(cell))
                    done.put((cell, Outcome(**_read(process.stdout))))
            except (OSError, ValueError, TypeError) as error:
                errors.seek(0)
                said = errors.read()[-_SHOWN:].strip() or repr(error)
                done.put(UserError(f"a worker process of the sweep ended early: {said}"))
            finally:
                process.communicate()


def _write(stream: Any, row: Mapping[str, Any]) -> None:
    stream.write(json.dumps(row) + "\n")
    stream.flush()


def _read(stream: Any) -> Any:
    line = stream.readline()
    if not line:
        raise ValueError("no answer")
    return json.loads(line)


def take_streams() -> tuple[TextIO, TextIO]:
    """The input and output of a worker; whatever else is printed goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return sys.stdin, answers


def serve(variants: Variants, data: Data, training: Training, cells: TextIO, answers: TextIO) -> None:
    """Runs cells that come as JSON lines, on one thread, until there are no more."""
    set_threads(1)
    for line in cells:
        outcome = run_cell(variants, data, Cell(**json.loads(line)), training, "cpu")
        _write(answers, outcome.to_dict())
