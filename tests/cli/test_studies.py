"""`coord-check` and `sweep` on the command line."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from torch import nn

from sparsify import api
from sparsify._study_commands import amount, amounts
from sparsify.archive import wrap


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    api.save(wrap(api.trace(model, (torch.zeros(2, 1, 8, 8),))), path)
    return path


CHECK = ("--densities", "1,1/4", "--steps", "2", "--seeds", "1", "--lr", "2^-7")


def test_coord_check_prints_the_contract(run, model_file, tmp_path):
    plot = tmp_path / "check.png"
    captured = run("coord-check", model_file, "--data", "digits", *CHECK, "--plot", plot, "--format", "json")
    data = json.loads(captured.out)
    assert set(data["slopes"]) == {"supar", "mup", "sp"} and set(data["slopes"]["supar"]) == {"3"}
    assert isinstance(data["slopes"]["supar"]["3"], float)
    assert data["plot"] == str(plot) and plot.exists()
    assert data["settings"]["lr"] == 2**-7


def test_coord_check_says_when_its_data_is_random_and_can_fail(run, model_file):
    good = run("coord-check", model_file, *CHECK, "--parameterization", "supar", "--max-slope", "0.35")
    assert "random inputs and targets" in good.err and "supar: |slope|" in good.out
    words = ("coord-check", model_file, *CHECK, "--rules", "none", "--max-slope", "0.1")
    assert "of 1 layers have a |slope| above 0.1 under supar, first 3" in run(*words, code=3).err
    failed = run("coord-check", model_file, *CHECK, "--parameterization", "sp", "--max-slope", "1", code=1)
    assert "judges supar" in failed.err


def test_sweep_prints_best_rates_and_goes_on(run, model_file, tmp_path):
    words = ("sweep", model_file, "--data", "digits", "--lr", "2^-9,2^-6", "--densities", "1,1/4")
    words += ("--steps", "3", "-o", tmp_path / "out")
    data = json.loads(run(*words, "--format", "json").out)
    assert len(data["best"]) == 6 and len(data["cells"]) == 12
    assert {"parameterization", "density", "lr", "loss", "edge"} <= set(data["best"][0])
    assert all(row["lr"] in (2**-9, 2**-6) for row in data["best"])
    assert (tmp_path / "out" / "sweep.png").exists() and data["plot"].endswith("sweep.png")
    again = run(*words)
    assert "best learning rates" in again.out and "of the grid" in again.out
    assert "another sweep: batch_size" in run(*words, "--batch-size", "8", code=1).err


def test_numbers_are_decimals_fractions_and_powers():
    assert amounts("1, 1/16,0.25,2^-3", "--x") == (1.0, 0.0625, 0.25, 0.125)
    for text in ("", "a", "1/0", "-1", "2^", "nan", "inf", "1e400", "10^400", "-8^0.5"):
        with pytest.raises(typer.BadParameter):
            amounts(text, "--x")
    assert amount("2^-6", "--lr") == 2**-6


def test_a_bad_number_is_a_usage_error(run, model_file):
    failed = run("coord-check", model_file, "--densities", "1,half", code=2)
    assert "--densities" in failed.err and "'half'" in failed.err and "no --data" not in failed.err
