"""`coord-check` and `sweep` on the command line."""

from __future__ import annotations

import json

import pytest
import torch
import typer
from torch import nn

import sparsify
from sparsify import api
from sparsify._options import amount, amounts
from sparsify.archive import wrap

EXAMPLE = (torch.zeros(2, 1, 8, 8),)


def perceptron(width):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    api.save(wrap(api.trace(perceptron(32), EXAMPLE)), path)
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


PATTERNS = {
    "srigl": ("--method", "srigl", "--pattern", "fan-in", "--densities", "1/4"),
    "gmp": ("--method", "gmp", "--pattern", "4x1", "--initial-density", "1", "--densities", "1/4"),
    "n:m": ("--method", "rigl", "--pattern", "2:4", "--densities", "1,1/2"),
}


@pytest.mark.parametrize("words", PATTERNS.values(), ids=PATTERNS)
def test_every_method_can_be_swept_under_its_pattern(run, model_file, tmp_path, words):
    out = ("--parameterization", "supar", "--steps", "2", "-o", tmp_path / "out", "--format", "json")
    said = json.loads(run("sweep", model_file, "--data", "digits", "--lr", "2^-8", *words, *out).out)
    pattern = words[words.index("--pattern") + 1]
    assert said["settings"]["plan_options"] == {"pattern": pattern}
    assert said["settings"]["initial_density"] == (1.0 if "gmp" in words else None)
    assert [cell["status"] for cell in said["cells"]] == ["finished"] * len(said["best"])


def test_coord_check_has_patterns(run, model_file):
    words = ("coord-check", model_file, "--data", "digits", "--steps", "1", "--seeds", "1", "--lr", "2^-7")
    words += ("--pattern", "2:4", "--densities", "1,1/2", "--parameterization", "supar", "--format", "json")
    said = json.loads(run(*words).out)
    assert [point["density"] for point in said["points"]] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--method", "srigl"), "fan-in"),
        (("--method", "gmp"), "initial_density=1"),
        (("--pattern", "2:4"), "at the densities 1 and 0.5, not at 0.25"),
        (("--pattern", "stripes"), "unknown pattern 'stripes'"),
        (("--method", "gmp", "--initial-density", "0.1"), "below the planned density"),
    ],
)
def test_what_a_method_lacks_is_said_before_anything_is_trained(run, model_file, tmp_path, words, reason):
    words = ("sweep", model_file, "--data", "digits", "--lr", "2^-8", "-o", tmp_path / "out", *words)
    assert reason in run(*words, code=1).err
    file = tmp_path / "out" / "cells.jsonl"
    assert not file.exists() or len(file.read_text().splitlines()) == 1


SCALING = ("--input-multiplier", "2", "--base-std", "*=0.1", "--density-exponent", "0.5")
OPTIONS = {"input_multiplier": 2.0, "base_std": {f"{n}.weight": 0.1 for n in (1, 3, 5)}}


def test_scaling_options_mean_what_they_mean_in_python(run, model_file, tmp_path):
    """The base is a model file for the one command, and its description for the other."""
    api.save(wrap(api.trace(perceptron(16), EXAMPLE)), tmp_path / "base.pt2")
    api.save_base(perceptron(16), tmp_path / "base.json", EXAMPLE)
    options = {**OPTIONS, "density_exponent": 0.5, "base": perceptron(16), "progress": False}
    words = ("coord-check", model_file, "--data", "digits", *CHECK, "--base", tmp_path / "base.pt2", *SCALING)
    said = json.loads(run(*words, "--format", "json").out)
    settings = {"densities": (1.0, 0.25), "steps": 2, "seeds": 1, "lr": 2**-7}
    expected = sparsify.coord_check(perceptron(32), "digits", **settings, **options)
    assert said["slopes"] == expected.slopes
    assert {**said["settings"], "rules": expected.settings["rules"]} == expected.settings
    words = ("sweep", model_file, "--data", "digits", "--lr", "2^-7", "--densities", "1/4", "--steps", "2")
    words += (
        "--base",
        tmp_path / "base.json",
        *SCALING,
        "--parameterization",
        "supar",
        "-o",
        tmp_path / "out",
    )
    said = json.loads(run(*words, "--format", "json").out)
    settings = {"lrs": [2**-7], "densities": [0.25], "parameterizations": ["supar"], "steps": 2}
    swept = sparsify.sweep(perceptron(32), "digits", **settings, **options)
    assert [cell["loss"] for cell in said["cells"]] == [one.loss for one in swept.outcomes.values()]
    assert said["settings"]["base"] == swept.settings["base"] is not None


@pytest.mark.parametrize("mode", ["width", "isoflop"])
def test_every_mode_is_reached(run, model_file, mode):
    words = ("coord-check", model_file, "--data", "digits", "--steps", "1", "--seeds", "1", "--lr", "2^-7")
    varied = ("--widths", "1,2", "--densities", "1/4") if mode == "width" else ("--densities", "1,1/4")
    captured = run(*words, "--mode", mode, *varied, "--parameterization", "supar,sp", "--format", "json")
    data = json.loads(captured.out)
    assert data["mode"] == mode and set(data["slopes"]["sp"]) == {"3"}
    first, second = data["points"]
    assert first["width"] == 1.0 and second["width"] > 1.1
    assert second["density"] == pytest.approx(0.25, rel=0.2)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--data", "nothing"), 1, "unknown data 'nothing'; known are digits"),
        (("--densities", "1,0"), 2, "'0' is not a positive number"),
        (("--densities", "1,2"), 1, "kept share in (0, 1], not 2"),
        (("--mode", "diagonal"), 1, "'diagonal' is not one of density, width, isoflop"),
        (("--only", "1x"), 1, "1x"),
        (("--base", "missing.json"), 1, "missing.json"),
    ],
)
def test_bad_input_is_named(run, model_file, words, code, reason):
    assert reason in run("coord-check", model_file, *words, code=code).err


def test_numbers_are_decimals_fractions_and_powers():
    assert amounts("1, 1/16,0.25,2^-3", "--x") == (1.0, 0.0625, 0.25, 0.125)
    for text in ("", "a", "1/0", "-1", "2^", "nan", "inf", "1e400", "10^400", "-8^0.5"):
        with pytest.raises(typer.BadParameter):
            amounts(text, "--x")
    assert amount("2^-6", "--lr") == 2**-6


def test_a_bad_number_is_a_usage_error(run, model_file):
    failed = run("coord-check", model_file, "--densities", "1,half", code=2)
    assert "--densities" in failed.err and "'half'" in failed.err and "no --data" not in failed.err
