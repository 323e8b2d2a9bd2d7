"""A sweep over learning rate, density, parameterization and width: where does each learn best?"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from sparsify.errors import UserError
from sparsify.graph.traced import Traced
from sparsify.planning import fingerprint
from sparsify.train.data import Data, checksum
from sparsify.train.study_progress import StudyBar
from sparsify.train.sweep_best import Curve, curves, shift
from sparsify.train.sweep_cells import Cell, Outcome, Training, grid, run_cell, same_runs, sampled
from sparsify.train.sweep_file import SweepFile
from sparsify.train.sweep_plot import plot_sweep
from sparsify.train.sweep_workers import Workers
from sparsify.train.variants import Variants, check_densities, check_parameterizations

Widths = Sequence[float] | Literal["isoflop"] | None
WorkerPool = Callable[[Training], Workers]


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        curves: Loss over learning rate with the best rate, for each parameterization, width and density.
        shift: Parameterization to the number of factors of 2 by which the best rate moves.
        outcomes: Every cell's metrics.
        settings: How the cells were trained.
        files: `cells` (JSON lines), `csv`, `json` and `plot`, where they were written.
    """

    curves: tuple[Curve, ...]
    shift: dict[str, float | None]
    outcomes: dict[Cell, Outcome]
    settings: dict[str, Any]
    files: dict[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form: `best` (the curves), `shift`, `cells`, `settings`, `files`, `plot`."""
        return {
            "best": [curve.to_dict() for curve in self.curves],
            "shift": self.shift,
            "cells": [asdict(cell) | outcome.to_dict() for cell, outcome in self.outcomes.items()],
            "settings": self.settings,
            "files": {name: str(path) for name, path in self.files.items()},
            "plot": str(self.files["plot"]) if "plot" in self.files else None,
        }


def sweep(
    traced: Traced,
    data: Data,
    *,
    lrs: Sequence[float],
    densities: Sequence[float] = (1.0, 1 / 4, 1 / 16),
    parameterizations: Sequence[str] = ("supar", "mup", "sp"),
    widths: Widths = None,
    seeds: int = 1,
    output: Path | None = None,
    workers: WorkerPool | None = None,
    progress: bool = True,
    **training: Any,
) -> SweepResult:
    """Trains one sparse variant of a model for every cell of a grid.

    Args:
        traced: The dense model; it stays as it is.
        data: What to train and test on.
        lrs: Learning rates of the dense base.
        densities: Densities in (0, 1].
        parameterizations: Which of `supar`, `mup` and `sp`.
        widths: Width factors; `isoflop` for the one that keeps the FLOPs; None for the given widths.
        seeds: Runs of each cell with other weights, masks and data order.
        output: Folder of the results. Cells that it holds already are not run again.
        workers: Makes worker processes; None runs the cells in this one.
        progress: Show a progress bar on stderr.
        **training: Fields of `Training`.

    Returns:
        Curves and best learning rates. A cell whose loss is not finite is recorded as `diverged`.

    Raises:
        UserError: An option is out of range, the method cannot train the models, or the folder holds another
            sweep.
    """
    settings = _training(training)
    cells = _cells(parameterizations, densities, widths, lrs, seeds)
    variants = settings.variants(traced)
    used = sampled(data, settings.test_examples)
    configuration = {
        "model": fingerprint(variants.facts),
        "weights": checksum([parameter.detach().cpu() for parameter in traced.module.parameters()]),
        "data": f"{data.name}:{data.digest()}",
        **settings.describe(),
    }
    groups = same_runs(variants, cells)
    settings.check_method(variants, used, min(cells, key=lambda cell: cell.density))
    file = SweepFile(None if output is None else output / "cells.jsonl", configuration)
    with StudyBar(len(cells), progress, done=sum(cell in file.outcomes for cell in cells)) as bar:
        for group in groups:
            known = [file.outcomes[cell] for cell in group if cell in file.outcomes]
            if known:
                _record(file, group, known[0], bar)
        waiting = {group[0]: group for group in groups if group[0] not in file.outcomes}
        pool = None if workers is None else workers(settings)
        for cell, outcome in _outcomes(variants, used, list(waiting), settings, pool):
            _record(file, waiting[cell], outcome, bar)
    return _result(cells, file, {**settings.describe(), "data": data.name, "seeds": seeds}, output)


def _outcomes(
    variants: Variants, data: Data, cells: Sequence[Cell], settings: Training, pool: Workers | None
) -> Iterator[tuple[Cell, Outcome]]:
    if pool is not None:
        yield from pool.run(cells)
        return
    for cell in cells:
        yield cell, run_cell(variants, data, cell, settings)


def _record(file: SweepFile, group: Sequence[Cell], outcome: Outcome, bar: StudyBar) -> None:
    """Adds an outcome for all cells whose runs are the same."""
    for cell in group:
        if cell not in file.outcomes:
            file.add(cell, outcome)
            loss = "diverged" if outcome.loss is None else f"loss {outcome.loss:.4f}"
            bar.finished(f"{cell.parameterization}  density {cell.density:.4g}  lr {cell.lr:.4g}  {loss}")


def _training(given: Mapping[str, Any]) -> Training:
    known = [entry.name for entry in fields(Training)]
    for name in given:
        if name not in known:
            raise UserError(f"sweep has no option '{name}'; it has {', '.join(known)}")
    settings = Training(**given)
    settings.check()
    return settings


def _cells(
    parameterizations: Sequence[str],
    densities: Sequence[float],
    widths: Widths,
    lrs: Sequence[float],
    seeds: int,
) -> tuple[Cell, ...]:
    if not lrs or any(not 0.0 < lr < float("inf") for lr in lrs):
        raise UserError(f"lrs must be positive and finite learning rates, at least one; got {list(lrs)}")
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, got {seeds}")
    if isinstance(widths, str) and widths != "isoflop":
        raise UserError(f"widths is a list of factors or 'isoflop', not '{widths}'")
    chosen: tuple[float | Literal["isoflop"] | None, ...] = (None,)
    if widths == "isoflop":
        chosen = ("isoflop",)
    elif widths is not None:
        chosen = tuple(sorted({float(width) for width in widths}))
    return grid(
        check_parameterizations(parameterizations),
        check_densities(densities),
        chosen,
        tuple(sorted({float(lr) for lr in lrs})),
        seeds,
    )


def _result(
    cells: Sequence[Cell], file: SweepFile, settings: dict[str, Any], output: Path | None
) -> SweepResult:
    found = curves(cells, file.outcomes)
    outcomes = {cell: file.outcomes[cell] for cell in cells}
    files: dict[str, Path] = {}
    if output is not None:
        names = {"cells": "cells.jsonl", "csv": "cells.csv", "json": "sweep.json", "plot": "sweep.png"}
        files = {name: output / file_name for name, file_name in names.items()}
    result = SweepResult(found, shift(found), outcomes, settings, files)
    if output is not None:
        _write_csv(files["csv"], outcomes)
        plot_sweep(found, files["plot"], title=_title(settings))
        _replace(files["json"], json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def _title(settings: Mapping[str, Any]) -> str:
    pattern = settings["plan_options"].get("pattern", "")
    masks = f"{settings['method']} masks" + (f" ({pattern})" if pattern else "")
    return (
        f"{settings['data']}: {settings['optimizer']}, {settings['steps']} steps of "
        f"{settings['batch_size']}, {masks}, {settings['seeds']} seeds"
    )


def _write_csv(path: Path, outcomes: Mapping[Cell, Outcome]) -> None:
    rows = [
        asdict(cell) | {"status": one.status, "loss": one.loss, "seconds": one.seconds} | dict(one.metrics)
        for cell, one in outcomes.items()
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
