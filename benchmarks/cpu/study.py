"""The tables as a study: which cells there are, what each of them runs, and about how long it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cpu import cells, layers, machine, report, storage
from benchmarks.cpu.cells import INT8, MACHINE, PEER, Cell, Sizes
from benchmarks.study.engine import Study
from benchmarks.study.ledger import Ledger

_SECONDS = {"linear": 2.0, "grid": 0.75, "resnet50": 6.0, "bert": 5.0, "small": 2.0, "iso": 6.0}
_PEER_SECONDS = {"grid": 0.6, "resnet50": 6.0, "bert": 5.0}
_BESIDE = {
    "linear": 1.0,
    "grid": 2.0,
    "resnet50": 20.0,
    "bert": 20.0,
    "small": 5.0,
    "iso": 25.0,
    "bytes": 3.0,
}
_SLOWEST_CALLS = {"resnet50": 12.0, "bert": 12.0, "small": 2.0}
_INT8_ONCE = 40.0


@dataclass(frozen=True)
class Tables(Study[Cell]):
    """All tables, at one size.

    Attributes:
        sizes: How large.
        models: Folder of exported files, which are made once.
        python: Interpreter of the peer's environment; None leaves the peer out.
        tune: Whether nodes of networks are chosen by measuring.
        scale: Factor on all durations.
        tiny: Toys instead of the networks.
    """

    sizes: Sizes
    models: Path
    python: str | None = None
    tune: bool = False
    scale: float = 1.0
    tiny: bool = False

    kind = Cell
    parts = cells.PARTS

    def wanted(self, ledger: Ledger[Cell], part: str) -> Iterable[Cell]:
        """The machine's ceilings, then the part's cells."""
        yield from cells.ceilings(self.sizes)
        yield from cells.cells(part, self.sizes, tune=self.tune, peer=self.python is not None)

    def execute(self, run: Cell) -> dict[str, Any]:
        """Measures a cell: `rows`, or `machine`."""
        if run.engine == MACHINE:
            return {"machine": machine.measure(run.threads).to_json()}
        return {"rows": self._rows(run)}

    def _rows(self, run: Cell) -> list[dict[str, Any]]:
        if run.engine == PEER:
            from benchmarks.cpu.peer import time_peer

            seconds = self.scale * _PEER_SECONDS[run.part]
            return time_peer(run, self._plain(run), self.python or "", seconds)
        if run.engine in INT8:
            from benchmarks.cpu.int8 import time_int8
            from benchmarks.cpu.networks import exported

            dense = exported(run.model, self.models, tiny=self.tiny)
            return time_int8(run, dense, self.scale * _SECONDS[run.part])
        if run.part == "bytes":
            is_layer = run.model == self.sizes.bytes_layer
            return storage.layer_rows(run) if is_layer else storage.network_rows(run, self._plain(run))
        seconds = self.scale * _SECONDS[run.part]
        if run.part in ("linear", "grid"):
            return layers.time_layers(run, seconds, self.models, forced=run.part == "linear")
        from benchmarks.cpu.whole import time_network

        if run.part == "iso":
            from benchmarks.iso_time import prepare

            pair = prepare(run.model, run.pattern, run.sparsities[0], self.models)
            rows = time_network(run, pair.wide, seconds, original=pair.dense)
            return [row | {"flops_ratio": pair.flops_ratio} for row in rows]
        return time_network(run, self._plain(run), seconds)

    def _plain(self, run: Cell) -> Path:
        """The cell's network or layer in standard operators, zeros in place."""
        if run.part == "grid":
            return layers.write_layer(run.model, run.pattern, run.sparsities[0], self.models)
        from benchmarks.cpu.networks import pruned

        return pruned(run.model, run.sparsities[0], self.models, pattern=run.pattern, tiny=self.tiny)

    def seconds(self, run: Cell) -> float:
        """About how long a cell takes on a quiet machine, exports left out, which are made once."""
        if run.engine == MACHINE:
            return 4.0
        if run.part == "bytes":
            return _BESIDE["bytes"] if run.model == self.sizes.bytes_layer else 20.0
        per = (_PEER_SECONDS if run.engine == PEER else _SECONDS)[run.part]
        sides = len(run.batches) * (1 + max(1, len(run.sparsities)))
        once = _INT8_ONCE if run.engine in INT8 else _BESIDE[run.part]
        slow = _SLOWEST_CALLS.get(run.part, 0.0)
        return 1.15 * self.scale * per * sides + (once + slow) * (0.2 if self.tiny else 1.0)

    def pretended(self, run: Cell) -> dict[str, Any]:
        """Nothing waits for another cell's figures."""
        return {"rows": []}

    def label(self, run: Cell) -> str:
        """Part, model, mask and threads."""
        if run.engine == MACHINE:
            return f"the machine's ceilings, threads {run.threads}"
        sparsities = ", ".join(f"{100 * sparsity:g} %" for sparsity in run.sparsities) or "dense"
        batches = ", ".join(map(str, run.batches))
        name = f"{run.part}: {run.model} {run.pattern} {sparsities}, batch {batches}, threads {run.threads}"
        return name if run.engine == cells.SPARSE else f"{name}, {run.engine}"

    def outcome(self, result: Mapping[str, Any]) -> str:
        """Speedups, or shares of bytes."""
        if "machine" in result:
            return f"{result['machine']['peak']:.0f} GFLOP/s"
        rows = result["rows"]
        if rows and "speedup" in rows[0]:
            return ", ".join(f"{row['speedup']:.2f}×" for row in rows)
        return ", ".join(f"{row['file']:.3f}" for row in rows)

    def report(self, ledger: Ledger[Cell], folder: Path, document: Path | None) -> dict[str, Any]:
        """Plots and tables."""
        return report.write(ledger, folder, document)
