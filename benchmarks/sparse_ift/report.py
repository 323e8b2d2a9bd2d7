"""What the runs say: gains at equal FLOPs, paired, beside the gain of the dense model of the wider shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.sparse_ift.runs import BASE, Cell, Run, cell, wider
from benchmarks.study import plots
from benchmarks.study.document import NOT_RUN, refresh, table
from benchmarks.study.ledger import Ledger
from benchmarks.study.samples import Sample

METHODS = {"static": "static", "rigl": "RigL"}


@dataclass(frozen=True)
class Results:
    """The runs of one part.

    Attributes:
        dense: The tuned run of its base.
        cells: What is compared with it.
        ledger: All runs.
    """

    dense: Run
    cells: tuple[Cell, ...]
    ledger: Ledger[Run]

    @property
    def measure(self) -> str:
        """What is compared: accuracy in percent, or loss in nats."""
        return "loss" if self.dense.model == "gpt" else "accuracy"

    @property
    def digits(self) -> int:
        """Decimals worth showing."""
        return 4 if self.measure == "loss" else 2

    def sample(self, which: Cell, measure: str | None = None) -> Sample:
        """A measure of a cell over the seeds."""
        return Sample.of(self.ledger, cell(self.dense, which), measure or self.measure)

    def gain(self, which: Cell) -> Sample:
        """How much better than the base of the same seed: points of accuracy, or nats."""
        own, base = self.sample(which), self.sample(BASE)
        return base.minus(own) if self.measure == "loss" else own.minus(base)

    def share(self, which: Cell) -> float | None:
        """Its gain over that of the dense model with the wide family's widths at that sparsity.

        Over the seeds that both have. None where that dense model is not better than the base.
        """
        own, bound = self.gain(which), self.gain(wider(which[1]))
        shared = [seed for seed in own.values if seed in bound.values]
        best = sum(bound.values[seed] for seed in shared)
        return sum(own.values[seed] for seed in shared) / best if best > 0 else None


def name_of(which: Cell) -> str:
    """What tables, plots and the progress call a cell."""
    family, sparsity, method, parameterization = which
    if family == "dense":
        return f"dense, as wide as at {100 * sparsity:g} %" if sparsity else "dense"
    scaled = ", SμPar" if parameterization == "supar" else ""
    return f"{family} {100 * sparsity:g} % {METHODS[method]}{scaled}"


def in_order(cells: Sequence[Cell]) -> list[Cell]:
    """By family, then by rising sparsity; a wider dense model behind the wide ones of its sparsity."""
    families = ["wide", "parallel", "factorized", "doped"]

    def place(which: Cell) -> tuple[Any, ...]:
        family, sparsity, method, parameterization = which
        dense = family == "dense"
        return (
            families.index("wide" if dense else family),
            sparsity,
            dense,
            parameterization,
            method != "static",
        )

    return sorted(cells, key=place)


def write(
    found: Mapping[str, Results], parts: Sequence[str], folder: Path, document: Path | None
) -> dict[str, Any]:
    """Writes the plots and a table for every part; returns the numbers."""
    for model in {one.dense.model for one in found.values()}:
        of_model = [one for one in found.values() if one.dense.model == model]
        rows = bars(of_model)
        if rows:
            measure = "nats per byte gained" if of_model[0].measure == "loss" else "points of accuracy gained"
            plots.bars(rows, folder / f"{model}.png", measure=measure, zero="the dense base at equal FLOPs")
    if document is not None:
        contents = {part: gains(found[part]) if part in found else NOT_RUN for part in parts}
        refresh(document, contents)
    return {part: _json(one) for part, one in found.items()}


def gains(found: Results) -> str:
    """The table of a part."""
    digits = found.digits
    unit = "loss, nats per byte" if found.measure == "loss" else "test accuracy, %"
    head = ["", "FLOPs", "active weights", "stored", unit, "gain", "seeds", "of the wider dense model's gain"]
    rows = []
    for which in (BASE, *in_order(found.cells)):
        measured = found.sample(which)
        if not len(measured):
            continue
        gain, share = found.gain(which), found.share(which)
        within = "" if which == BASE or gain.exceeds_spread else ", within the spread"
        rows.append(
            [
                name_of(which),
                f"{found.sample(which, 'flops_ratio').mean:.3f}",
                f"{found.sample(which, 'active_parameters').mean:,.0f}",
                f"{found.sample(which, 'parameters').mean:,.0f}",
                measured.text(digits),
                "" if which == BASE else gain.text(digits, sign=True) + within,
                str(len(measured)),
                "" if which[0] == "dense" or share is None else f"{100 * share:.0f} %",
            ]
        )
    run = found.dense
    kind = "windows" if found.measure == "loss" else "images"
    return (
        f"Base of width {run.width}, learning rate {run.lr:g}, {run.steps} steps of {run.batch} {kind}.\n\n"
        + table(head, rows)
    )


def bars(found: Sequence[Results]) -> dict[str, dict[str, Sample]]:
    """Gains by family and sparsity, by how they were trained; all parts of one model together."""
    rows: dict[str, dict[str, Sample]] = {}
    gains = {which: one.gain(which) for one in found for which in one.cells}
    for which in in_order(list(gains)):
        family, sparsity, method, parameterization = which
        if not len(gains[which]):
            continue
        place = "wide" if family == "dense" else family
        entry = "dense of that width" if family == "dense" else METHODS[method]
        entry += ", SμPar" if parameterization == "supar" else ""
        rows.setdefault(f"{place} {100 * sparsity:g} %", {})[entry] = gains[which]
    return rows


def _json(found: Results) -> dict[str, Any]:
    return {
        "base": {"run": asdict(found.dense), **found.sample(BASE).to_json()},
        "measure": found.measure,
        "cells": [
            {
                "name": name_of(which),
                "cell": list(which),
                **found.sample(which).to_json(),
                "gain": found.gain(which).to_json(),
                "exceeds_spread": found.gain(which).exceeds_spread,
                "share_of_wider_dense": found.share(which),
                "flops_ratio": found.sample(which, "flops_ratio").to_json().get("mean"),
            }
            for which in found.cells
            if len(found.sample(which))
        ],
    }
