"""What the runs say: accuracies around the hard finish, paired differences, size and latency, a plot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.study import plots
from benchmarks.study.document import refresh, table
from benchmarks.study.ledger import Ledger
from benchmarks.study.samples import Sample
from benchmarks.wgsef.latency import MULTIPLE
from benchmarks.wgsef.runs import METHODS, SPARSE, Of, Run

TITLES = {"vgg": "VGG-like", "resnet": "ResNet"}


def write(
    models: Mapping[str, Of], ledger: Ledger[Run], folder: Path, document: Path | None
) -> dict[str, Any]:
    """Writes the plot and the tables; returns the numbers."""
    cells = [
        replace(of.dense(model), method=method, keep=keep)
        for model, of in models.items()
        for keep in of.keeps
        for method in SPARSE
    ]
    plots.bars(_bars(models, ledger), folder / "accuracy.png", measure="accuracy, points", zero="dense")
    if document is not None:
        contents: dict[str, str] = {}
        for model, of in models.items():
            own = [cell for cell in cells if cell.model == model]
            contents[model] = accuracies(of.dense(model), own, ledger)
            contents[f"{model} size"] = sizes(own, ledger)
        contents["differences"] = differences(models, ledger)
        refresh(document, contents)
    return {
        "dense": {m: Sample.of(ledger, of.dense(m), "accuracy").to_json() for m, of in models.items()},
        "cells": [_json(cell, ledger) for cell in cells],
    }


def accuracies(dense: Run, cells: list[Run], ledger: Ledger[Run]) -> str:
    """Filters before the hard finish, accuracy before and after it, and at the end."""
    rows = []
    if len(sample := Sample.of(ledger, dense, "accuracy")):
        rows.append(["dense", "–", "–", "–", "–", sample.text()])
    for cell in cells:
        measured = {
            name: Sample.of(ledger, cell, name)
            for name in ("k", "groups_alive", "before", "after", "accuracy")
        }
        if len(measured["k"]):
            rows.append(
                [
                    f"{METHODS[cell.method]}, {100 * cell.keep:g} %",
                    f"{measured['k'].mean:.0f}",
                    measured["groups_alive"].text(0),
                    *(measured[name].text() for name in ("before", "after", "accuracy")),
                ]
            )
    head = ["", "filters kept", "left before the finish", "before it, %", "after it, %", "at the end, %"]
    return table(head, rows)


FORMS = {"exact": "exact", "blocks": f"multiples of {MULTIPLE}"}


def sizes(cells: list[Run], ledger: Ledger[Run]) -> str:
    """What is left of parameters, FLOPs and latency after `narrow`."""
    rows = []
    for cell in cells:
        for form, title in FORMS.items():
            shares = {name: shrunk(cell, ledger, form, name) for name in ("parameters", "flops")}
            timed = {batch: timings(cell, ledger, form, batch) for batch in ("1", "64")}
            if len(shares["flops"]):
                rows.append(
                    [
                        f"{METHODS[cell.method]}, {100 * cell.keep:g} %",
                        title,
                        *(shares[name].times(100).text(1) for name in ("parameters", "flops")),
                        *(timed[batch][name].text(2) for batch in ("1", "64") for name in ("ms", "speedup")),
                    ]
                )
    head = ["", "widths", "parameters, %", "FLOPs, %", "ms, batch 1", "speedup", "ms, batch 64", "speedup"]
    return table(head, rows)


def differences(models: Mapping[str, Of], ledger: Ledger[Run]) -> str:
    """WGSEF minus group lasso, paired by seed."""
    rows = []
    for model, of in models.items():
        for keep in of.keeps:
            pair = [replace(of.dense(model), method=method, keep=keep) for method in SPARSE]
            found = [
                Sample.of(ledger, pair[0], name).minus(Sample.of(ledger, pair[1], name))
                for name in ("before", "after", "accuracy")
            ]
            if len(found[0]):
                rows.append(
                    [
                        f"{TITLES[model]}, {100 * keep:g} %",
                        *(sample.text(sign=True) for sample in found),
                        "yes" if found[-1].exceeds_spread else "no",
                    ]
                )
    head = ["WGSEF − group lasso, points", "before", "after", "at the end", "end exceeds spread"]
    return table(head, rows)


def shrunk(cell: Run, ledger: Ledger[Run], form: str, measure: str) -> Sample:
    """What is left of `parameters` or `flops`, as a share, by seed."""
    found = {}
    for run, result in ledger.items():
        if run.removed and replace(run, removed=()) == replace(cell, seed=run.seed):
            before, after = result[form][measure]
            found[run.seed] = after / before
    return Sample(dict(sorted(found.items())))


def timings(cell: Run, ledger: Ledger[Run], form: str, batch: str) -> dict[str, Sample]:
    """Milliseconds of the narrowed model and its speedup over the dense one, by seed."""
    found: dict[str, dict[int, float]] = {"ms": {}, "speedup": {}}
    for run, result in ledger.items():
        if run.removed and replace(run, removed=()) == replace(cell, seed=run.seed):
            found["ms"][run.seed] = result[form]["narrow_ms"][batch]
            found["speedup"][run.seed] = result[form]["speedup"][batch]
    return {name: Sample(dict(sorted(values.items()))) for name, values in found.items()}


def _bars(models: Mapping[str, Of], ledger: Ledger[Run]) -> dict[str, dict[str, Sample]]:
    rows: dict[str, dict[str, Sample]] = {}
    for model, of in models.items():
        dense = Sample.of(ledger, of.dense(model), "accuracy")
        for keep in of.keeps:
            cells = {method: replace(of.dense(model), method=method, keep=keep) for method in SPARSE}
            rows[f"{TITLES[model]}, {100 * keep:g} %"] = {
                METHODS[method]: Sample.of(ledger, cell, "accuracy").minus(dense)
                for method, cell in cells.items()
            }
    return rows


def _json(cell: Run, ledger: Ledger[Run]) -> dict[str, Any]:
    measures = ("accuracy", "before", "after", "narrow_accuracy", "groups_alive", "finish", "strength", "k")
    return {
        "model": cell.model,
        "method": cell.method,
        "keep": cell.keep,
        **{name: Sample.of(ledger, cell, name).to_json() for name in measures},
        "narrowed": {
            form: {
                **{name: shrunk(cell, ledger, form, name).to_json() for name in ("parameters", "flops")},
                "latency": {
                    batch: {name: one.to_json() for name, one in timings(cell, ledger, form, batch).items()}
                    for batch in ("1", "64")
                },
            }
            for form in FORMS
        },
    }
