"""`sparsify transform` with patterns, distributions and denser starts, and what `inspect` says of them."""

from __future__ import annotations

import json

import pytest
import torch

import sparsify
from sparsify import api
from sparsify.archive import wrap
from sparsify.masks import check_patterns, masked_parameters, pattern_of
from tests.passes.test_patterned import Net


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "dense.pt2"
    api.save(wrap(api.trace(Net().eval(), (torch.randn(2, 3, 6, 6),))), path)
    return path


@pytest.mark.parametrize(
    ("words", "pattern", "present", "planned"),
    [
        (("--pattern", "2:4"), "2:4", 0.5, 0.5),
        (("--pattern", "fan-in", "--sparsity", "0.75", "--initial-density", "1"), "fan-in", 1.0, 0.25),
    ],
    ids=["n:m", "from dense"],
)
def test_archives_hold_the_pattern_and_the_present_masks(
    run, dense, tmp_path, words, pattern, present, planned
):
    file, start = tmp_path / "sparse.pt2", 1.0 if "--initial-density" in words else None
    said = run("transform", dense, "-o", file, "--family", "masked", *words, "--format", "json").out
    assert json.loads(said)["pattern"] == pattern
    loaded = sparsify.load(file)
    assert pattern_of(loaded).name == pattern
    assert loaded.sparsify.initial_density == start
    assert {entry.density for entry in masked_parameters(loaded).values()} == {present}
    check_patterns(loaded)
    said = json.loads(run("inspect", file, "--format", "json").out)
    assert said["masks"] == {"pattern": pattern, "density": present, "planned_density": planned}
    assert {row["density"] for row in said["layers"] if row["role"] in ("hidden", "grouped")} == {present}
    assert ("to be pruned to 0.25" in run("inspect", file).out) is (start is not None)
    assert sparsify.export(loaded, tmp_path / "sparse.onnx", dense=True).to_dict()["max_abs_error"] < 1e-4


def test_contradictions_end_with_exit_code_one_and_say_what_to_do(run, dense, tmp_path):
    words = ("transform", dense, "-o", tmp_path / "out.pt2", "--family", "masked")
    assert "its sparsity is 0.5" in run(*words, "--pattern", "2:4", "--sparsity", "0.9", code=1).err
    assert "unknown pattern" in run(*words, "--pattern", "stripes", code=1).err
    assert "below the planned density" in run(*words, "--initial-density", "0.1", code=1).err


def test_erk_is_planned(run, dense):
    words = (
        "transform",
        dense,
        "--plan-only",
        "--distribution",
        "erk",
        "--family",
        "masked",
        "--format",
        "json",
    )
    layers = {
        row["fqn"]: row["density"] for row in json.loads(run(*words, "--sparsity", "0.8").out)["layers"]
    }
    assert layers["first"] == layers["second"] > layers["conv"]
