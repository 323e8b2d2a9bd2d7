"""The ledger as flat rows, with the ceiling of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.cpu.cells import MACHINE, SPARSE, Cell
from benchmarks.cpu.machine import Machine
from benchmarks.cpu.work import Ceiling, ceiling, from_json
from benchmarks.study.ledger import Ledger


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        cell: What was measured together.
        values: What was found.
        ceiling: The least time that the machine allows; None where that is not known.
    """

    cell: Cell
    values: Mapping[str, Any]
    ceiling: Ceiling | None = None

    @property
    def batch(self) -> int:
        """Batch size."""
        return int(self.values["batch"])

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return float(self.values["sparsity"])

    @property
    def place(self) -> tuple[str, str, float, int, int]:
        """Model, mask, sparsity, batch size and threads."""
        return self.cell.model, self.cell.pattern, self.sparsity, self.batch, self.cell.threads

    @property
    def speedup(self) -> float:
        """Dense time over this one's."""
        return float(self.values["speedup"])

    @property
    def reached(self) -> float | None:
        """Share of the ceiling: least time over measured time."""
        if self.ceiling is None or not self.values.get("sparse_ms"):
            return None
        return 1e3 * self.ceiling.seconds / float(self.values["sparse_ms"])


def machines(ledger: Ledger[Cell]) -> dict[int, Machine]:
    """The machine's ceilings by number of threads."""
    return {
        cell.threads: Machine.from_json(result["machine"])
        for cell, result in ledger.items()
        if cell.engine == MACHINE
    }


def rows(ledger: Ledger[Cell], part: str, engine: str = SPARSE) -> list[Row]:
    """All measurements of a part by one engine, in the order of the tables."""
    known = machines(ledger)
    found = [
        Row(cell, values, _ceiling(values, known.get(cell.threads)))
        for cell, result in ledger.items()
        if cell.part == part and cell.engine == engine
        for values in result["rows"]
    ]
    return sorted(found, key=_order(found))


def _order(found: list[Row]) -> Callable[[Row], tuple[Any, ...]]:
    """Networks and masks as they came first; the rest by size."""
    names = list(dict.fromkeys((row.cell.model, row.cell.pattern) for row in found))
    return lambda row: (
        names.index((row.cell.model, row.cell.pattern)),
        row.cell.threads,
        row.values.get("sparsity", 0.0),
        str(row.values.get("dtype", "")),
        row.values["batch"],
    )


def _ceiling(values: Mapping[str, Any], machine: Machine | None) -> Ceiling | None:
    if machine is None or "works" not in values:
        return None
    return ceiling(from_json(values["works"]), machine, int(values["size"]))


def slower(
    ledger: Ledger[Cell], parts: Iterator[str] | tuple[str, ...]
) -> list[tuple[Row, Mapping[str, Any]]]:
    """Sparse nodes that took longer than their dense selves, those that lost most first."""
    found = [
        (row, node) for part in parts for row in rows(ledger, part) for node in row.values.get("slower", ())
    ]
    return sorted(found, key=lambda pair: pair[1]["dense_us"] - pair[1]["us"])
