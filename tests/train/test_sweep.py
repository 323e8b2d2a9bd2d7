from __future__ import annotations

import csv
import json
import math
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import UserError
from sparsify.train import sweep as sweep_module
from sparsify.train.sweep_best import curves, shift
from sparsify.train.sweep_cells import Cell, Outcome, Sample, Training, grid, same_runs
from sparsify.train.sweep_file import SweepFile
from sparsify.train.sweep_workers import Workers
from sparsify.train.variants import Variants
from tests.train.tasks import points

SPEC = "tests.train.tasks:points"
GRID = {
    "lrs": [2**-9, 2**-5],
    "densities": [1.0, 0.25],
    "parameterizations": ["supar", "sp"],
    "steps": 6,
    "batch_size": 8,
    "progress": False,
}


def network(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    )


@pytest.fixture(scope="module")
def traced():
    return sparsify.trace(network(), (torch.zeros(2, 6),))


def losses(result) -> dict[Cell, float | None]:
    return {cell: outcome.loss for cell, outcome in result.outcomes.items()}


@pytest.fixture
def runs(monkeypatch):
    """The cells that were really run."""
    seen: list[Cell] = []
    original = sweep_module.run_cell

    def counted(variants, data, cell, training):
        seen.append(cell)
        return original(variants, data, cell, training)

    monkeypatch.setattr(sweep_module, "run_cell", counted)
    return seen


def test_every_cell_has_a_result_and_equal_runs_are_run_once(traced, runs, tmp_path):
    found = sparsify.sweep(traced, points(), output=tmp_path, **GRID)
    assert len(found.outcomes) == 8 and all(one.status == "finished" for one in found.outcomes.values())
    assert len(runs) == 6  # at density 1 the parameterizations agree
    table = losses(found)
    for lr in GRID["lrs"]:
        assert table[Cell("supar", 1.0, None, lr, 0)] == table[Cell("sp", 1.0, None, lr, 0)]
        assert table[Cell("supar", 0.25, None, lr, 0)] != table[Cell("sp", 0.25, None, lr, 0)]
    data = json.loads((tmp_path / "sweep.json").read_text())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert {(row["parameterization"], row["density"]) for row in data["best"]} == {
        (name, density) for name in ("supar", "sp") for density in (1.0, 0.25)
    }
    for curve in found.curves:
        by_lr = {lr: table[Cell(curve.parameterization, curve.density, None, lr, 0)] for lr in curve.lrs}
        assert curve.lr == min(by_lr, key=lambda lr: by_lr[lr]) and curve.loss == by_lr[curve.lr]
        assert curve.edge in ("low", "high")
    with (tmp_path / "cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == list(table.values())
    assert {"parameterization", "density", "width", "lr", "seed", "status", "accuracy"} <= set(rows[0])
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def swept(traced, tmp_path_factory):
    """A finished sweep of the grid and its folder."""
    folder = tmp_path_factory.mktemp("swept")
    return sparsify.sweep(traced, points(), output=folder, **GRID), folder


@pytest.fixture
def first(swept, tmp_path):
    """The finished sweep, with a copy of its files in the test's own folder."""
    shutil.copytree(swept[1], tmp_path, dirs_exist_ok=True)
    return swept[0]


def test_finished_cells_are_not_run_again_and_the_grid_can_grow(traced, runs, first, tmp_path):
    again = sparsify.sweep(traced, points(), output=tmp_path, **GRID)
    assert runs == [] and again.outcomes == first.outcomes
    grown = sparsify.sweep(traced, points(), output=tmp_path, **{**GRID, "lrs": [2**-9, 2**-7, 2**-5]})
    assert {cell.lr for cell in runs} == {2**-7} and len(runs) == 3
    assert first.outcomes.items() <= grown.outcomes.items()


@pytest.mark.parametrize("kept", [0.3, 1.0])
def test_half_a_last_line_is_cut_off(traced, runs, first, tmp_path, kept):
    file = tmp_path / "cells.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    torn = lines[3][: int(kept * len(lines[3])) - 1]
    file.write_bytes(b"".join(lines[:3]) + torn)
    again = sparsify.sweep(traced, points(), output=tmp_path, **GRID)
    assert losses(again) == losses(first)
    assert 0 < len(runs) < 6
    assert len(file.read_bytes().splitlines()) == len(lines)


def test_a_killed_sweep_goes_on_to_the_same_numbers(traced, tmp_path):
    options = {**GRID, "lrs": [2**-k for k in range(10, 5, -1)], "steps": 20, "progress": False}
    script = f"""
import os, signal, threading, torch, sparsify
from sparsify.train import sweep
from tests.train.tasks import points
from tests.train.test_sweep import network
torch.set_num_threads(1)
traced = sparsify.trace(network(), (torch.zeros(2, 6),))
original, cells = sweep.run_cell, []
def run_cell(variants, data, cell, training):
    cells.append(cell)
    if len(cells) == 4:
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return original(variants, data, cell, training)
sweep.run_cell = run_cell
sparsify.sweep(traced, points(), output={str(tmp_path)!r}, **{options!r})
"""
    process = subprocess.run([sys.executable, "-c", script], check=False, timeout=240)
    assert process.returncode == -signal.SIGKILL
    done = (tmp_path / "cells.jsonl").read_bytes().count(b"\n") - 1
    assert 4 <= done < 20 and not (tmp_path / "sweep.json").exists()
    resumed = sparsify.sweep(traced, points(), output=tmp_path, **options)
    assert losses(resumed) == pytest.approx(losses(sparsify.sweep(traced, points(), **options)))
    assert (tmp_path / "sweep.json").exists()


@pytest.mark.usefixtures("first")
def test_the_file_of_another_sweep_is_refused(traced, tmp_path):
    before = (tmp_path / "cells.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"another sweep: steps \(was 6, is 7\)"):
        sparsify.sweep(traced, points(), output=tmp_path, **{**GRID, "steps": 7})
    with pytest.raises(UserError, match="another sweep: data"):
        sparsify.sweep(traced, points(seed=1), output=tmp_path, **GRID)
    model = network()
    with torch.no_grad():
        model[2].weight.mul_(1.5)
    with pytest.raises(UserError, match="another sweep: weights"):
        sparsify.sweep(model, points(), output=tmp_path, **GRID)
    assert (tmp_path / "cells.jsonl").read_bytes() == before


def test_an_option_that_is_newer_than_the_file_and_not_given_changes_nothing(tmp_path):
    path = tmp_path / "cells.jsonl"
    old = SweepFile(path, {"steps": 6})
    old.add(Cell("sp", 1.0, None, 0.1, 0), Outcome("finished", 1.0, {}, None, 0.1))
    assert SweepFile(path, {"steps": 6, "newer": None}).outcomes == old.outcomes
    with pytest.raises(UserError, match="another sweep: newer"):
        SweepFile(path, {"steps": 6, "newer": 1.0})


@pytest.mark.parametrize(
    "content", [b"hello\n", b"hello", b'{"a": 1}\n', b'{"format": "sparsify.sweep", "ver\nx\n']
)
def test_a_file_that_is_no_sweep_is_left_alone(tmp_path, content):
    path = tmp_path / "cells.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not the file of a sweep"):
        SweepFile(path, {"a": 1})
    assert path.read_bytes() == content


def test_a_header_that_was_cut_off_starts_anew(tmp_path):
    path = tmp_path / "cells.jsonl"
    SweepFile(path, {"a": 1})
    header = path.read_bytes()
    path.write_bytes(header[:40])
    SweepFile(path, {"a": 1})
    assert path.read_bytes() == header


def test_divergence_is_a_result(traced, tmp_path):
    found = sparsify.sweep(
        traced,
        points(),
        output=tmp_path,
        **{**GRID, "lrs": [2**-5, 1e25], "parameterizations": ["sp"], "densities": [0.25]},
    )
    (curve,) = found.curves
    assert curve.lr == 2**-5 and curve.losses[1] is None and curve.diverged == (0, 1)
    worst = found.outcomes[Cell("sp", 0.25, None, 1e25, 0)]
    assert worst.status == "diverged" and worst.reason.startswith("training diverged at step")
    assert "NaN" not in (tmp_path / "cells.jsonl").read_text()
    again = sparsify.sweep(
        traced,
        points(),
        output=tmp_path,
        **{**GRID, "lrs": [2**-5, 1e25], "parameterizations": ["sp"], "densities": [0.25]},
    )
    assert again.outcomes == found.outcomes


def test_workers_give_the_same_numbers(traced, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = {**GRID, "base": network(8), "base_std": {"2.weight": 0.5}, "output_multiplier": 2.0}
    alone = sparsify.sweep(traced, SPEC, **options)
    torch.set_num_threads(threads)
    together = sparsify.sweep(traced, SPEC, workers=2, output=tmp_path, **options)
    assert losses(together) == losses(alone)
    with pytest.raises(UserError, match="give it as a SPEC"):
        sparsify.sweep(traced, points(), workers=2, **GRID)


def test_a_worker_that_ends_early_says_why():
    command = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit('out of luck')"]
    pool = Workers(command, {}, 1)
    with pytest.raises(UserError, match="ended early: out of luck"):
        list(pool.run([Cell("sp", 1.0, None, 0.1, 0)]))


def test_widths_multiply_the_grid_and_isoflop_keeps_the_flops(traced):
    options = {**GRID, "densities": [0.25], "lrs": [2**-6], "steps": 2}
    by_width = sparsify.sweep(traced, points(), widths=[1, 2], **options)
    assert {cell.width for cell in by_width.outcomes} == {1.0, 2.0}
    diagonal = sparsify.sweep(traced, points(), widths="isoflop", **options)
    assert {cell.width for cell in diagonal.outcomes} == {"isoflop"}
    variants = Variants(traced)
    cell = next(iter(diagonal.outcomes))
    assert variants.plan(cell.variant).flops.ratio == pytest.approx(1, abs=0.05)


def test_the_grid_is_whole_seed_by_seed_and_knows_equal_runs(traced):
    cells = grid(("supar", "mup", "sp"), (1.0, 0.25), (None,), (0.1, 0.2), 2)
    assert len(cells) == len(set(cells)) == 24
    assert [cell.seed for cell in cells] == [0] * 12 + [1] * 12
    groups = same_runs(Variants(traced), cells)
    assert sorted(cell for group in groups for cell in map(id, group)) == sorted(map(id, cells))
    names = {(group[0].density, tuple(cell.parameterization for cell in group)) for group in groups}
    assert names == {(1.0, ("supar", "mup", "sp")), (0.25, ("supar",)), (0.25, ("mup", "sp"))}


def hand_made(table: dict[tuple[float, float], list[float | None]]) -> dict[Cell, Outcome]:
    return {
        Cell("sp", density, None, lr, seed): Outcome(
            "finished" if loss is not None else "diverged", loss, {}, None, 0.0
        )
        for (density, lr), seeds in table.items()
        for seed, loss in enumerate(seeds)
    }


def test_best_rates_spreads_and_edges():
    outcomes = hand_made(
        {
            (1.0, 0.1): [3.0, 5.0],
            (1.0, 0.2): [2.0, 4.0],
            (1.0, 0.4): [1.0, None],
            (0.5, 0.1): [3.0, 3.0],
            (0.5, 0.2): [2.0, 2.0],
            (0.5, 0.4): [1.0, 1.0],
        }
    )
    first, second = curves(tuple(outcomes), outcomes)
    assert first.losses == (4.0, 3.0, None) and first.diverged == (0, 0, 1)
    assert first.spreads[0] == pytest.approx(math.sqrt(2)) and first.spreads[2] is None
    assert (first.lr, first.loss, first.edge) == (0.2, 3.0, None)
    assert (second.lr, second.loss, second.edge) == (0.4, 1.0, "high")
    assert shift((first, second)) == {"sp": pytest.approx(1.0)}
    lost = hand_made({(1.0, 0.1): [None], (0.5, 0.1): [1.0]})
    assert shift(curves(tuple(lost), lost)) == {"sp": None}


def test_samples_are_spread_over_the_examples():
    data = points().test
    sample = Sample(data, 5)
    assert len(sample) == 5
    taken = sample.batch(torch.arange(5)).args[0]
    assert torch.equal(taken, data.inputs[0][torch.arange(5) * len(data) // 5])
    assert len(Sample(data, 10**6)) == len(data)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lrs": []}, "positive and finite"),
        ({"lrs": [0.1, -0.1]}, "positive and finite"),
        ({"densities": [2.0]}, "kept share"),
        ({"parameterizations": ["ntk"]}, "'ntk' is not one of"),
        ({"widths": "wide"}, "factors or 'isoflop'"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"colour": 1}, "no option 'colour'"),
        ({"method": "magic"}, "'magic' is not one of"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_named(traced, options, reason):
    with pytest.raises(UserError, match=reason):
        sparsify.sweep(traced, points(), **{**GRID, **options})


def test_training_options_reach_the_loop():
    assert Training(steps=3, clip=1.0).options("static") == {
        "method": "static",
        "steps": 3,
        "batch_size": 16,
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "warmup": 0.1,
        "clip": 1.0,
        "evaluate_every": 3,
    }
