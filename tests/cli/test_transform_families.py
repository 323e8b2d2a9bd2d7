"""`sparsify transform` with the families and their options: what it plans is what it writes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsify import api
from sparsify.archive import wrap


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 1),
        nn.Flatten(),
        nn.Linear(24 * 16, 10),
    ).eval()
    path = tmp_path_factory.mktemp("model") / "model.pt"
    api.save(wrap(api.trace(model, (torch.zeros(2, 1, 4, 4),))), path)
    return path


OPTIONS = {
    "parallel": ("--family", "parallel"),
    "parallel, inserted": ("--family", "parallel", "--branch-nonlinearity", "norm+relu"),
    "factorized": ("--family", "factorized"),
    "factorized, first": ("--family", "factorized", "--sparse-factors", "first"),
    "doped": ("--family", "doped", "--sparsity", "0.5"),
    "auto": ("--family", "auto", "--multiple", "4"),
    "wide": ("--family", "wide", "--no-heads"),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_plan_foretells_what_is_written(run, model_file, tmp_path, options):
    plan, out = tmp_path / "plan.json", tmp_path / "out.pt2"
    first = json.loads(
        run("transform", model_file, *options, "--plan-only", "-o", plan, "--format", "json").out
    )
    again = json.loads(run("transform", model_file, "--plan", plan, "-o", out, "--format", "json").out)
    assert again["layers"] == first["layers"] and again["refusals"] == first["refusals"]
    assert again["parameters"] == first["parameters"]
    assert again["flops"] == first["flops"] and abs(first["flops"]["ratio"] - 1) < 1e-3


def test_layers_say_branches_rank_and_nonlinearity(run, model_file, tmp_path):
    words = ("transform", model_file, "--plan-only", "--sparsity", "0.75", "--family")
    layers = json.loads(run(*words, "parallel", "--format", "json").out)["layers"]
    row = next(row for row in layers if row["fqn"] == "1")
    assert (row["branches"], row["rank"], row["nonlinearity"]) == (4, 0, "follows")
    assert "4 branches, follows" in run(*words, "parallel").out
    assert "rank 58" in run(*words, "factorized").out


def test_an_edited_plan_shows_what_follows_from_the_edit(run, model_file, tmp_path):
    plan = tmp_path / "plan.json"
    run("transform", model_file, "--plan-only", "-o", plan)
    data = json.loads(plan.read_text())
    next(layer for layer in data["layers"] if layer["fqn"] == "1")["family"] = "doped"
    plan.write_text(json.dumps(data))
    fitted = json.loads(run("transform", model_file, "--plan", plan, "--plan-only", "--format", "json").out)
    row = next(row for row in fitted["layers"] if row["fqn"] == "1")
    assert row["family"] == "doped" and row["rank"] > 0
    data["layers"][0]["family"] = "thin"
    plan.write_text(json.dumps(data))
    assert "layers (0).family" in run("transform", model_file, "--plan", plan, "--plan-only", code=1).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--family", "doped", "--width", "2"), "sparsity decides the rank"),
        (("--family", "parallel", "--width", "1.5"), "whole number"),
        (("--family", "parallel", "--branch-nonlinearity", "swish"), "norm+silu"),
        (("--family", "parallel", "--only", "4"), "linear-branches"),
    ],
)
def test_what_cannot_be_is_a_user_error(run, model_file, words, message):
    assert message in run("transform", model_file, *words, "--plan-only", code=1).err
