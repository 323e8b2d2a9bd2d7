"""`sparsify transform --base` and the other options that say what scaling is relative to."""

from __future__ import annotations

import json

import pytest

import sparsify
from sparsify import api
from sparsify.archive import wrap
from tests.scaling.widths import MODELS, built

BASE, WIDE = 16, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    build, example, _ = MODELS["transformer"]
    args = (example(0),)
    for name, width in (("small", BASE), ("large", WIDE)):
        api.save(wrap(api.trace(built(build, width), args)), path / f"{name}.pt2")
    sparsify.save_base(sparsify.load(path / "small.pt2"), path / "small.json")
    return path


@pytest.mark.parametrize("base", ["small.pt2", "small.json"])
def test_the_base_is_a_model_or_its_description(run, folder, tmp_path, base):
    out = tmp_path / "out.pt2"
    options = ("--family", "masked", "--sparsity", "0.5", "--base", folder / base, "--output-multiplier", "2")
    said = run("transform", folder / "large.pt2", "-o", out, *options, "--format", "json").out
    scaling = sparsify.load(out).sparsify.scaling
    expected = {"parameterization": "supar", "density_exponent": 1.0, "base": str(folder / base)}
    assert json.loads(said)["scaling"] == expected
    assert scaling["layers.0.attention.q.weight"].m_in == WIDE / BASE
    assert scaling["head.weight"].forward == 2 * BASE / WIDE
    assert [one.head_size_base for one in scaling.attention] == [BASE // 2] * 2


def test_the_scaling_in_force_is_said(run, folder, tmp_path):
    words = ("transform", folder / "small.pt2", "-o", tmp_path / "out.pt2", "--family", "masked")
    words += ("--parameterization", "mup", "--density-exponent", "0.5")
    assert "scaling: mup, density exponent 0.5, relative to the given model" in run(*words).out
    assert json.loads(run(*words, "--plan-only", "--format", "json").out)["scaling"] is None


def test_initial_spreads_are_given_by_name_or_pattern(run, folder, tmp_path):
    out = tmp_path / "out.pt2"
    words = ("transform", folder / "small.pt2", "-o", out, "--family", "masked", "--sparsity", "0.5")
    run(*words, "--base-std", "layers.*=0.25", "--base-std", "layers.1.up.weight=0.5")
    model = sparsify.load(out)
    weights, scaling = dict(model.named_parameters()), model.sparsify.scaling
    for name, std in (("layers.0.up.weight", 0.25), ("layers.1.up.weight", 0.5)):
        active = weights[name][weights[name] != 0]
        assert active.std().item() == pytest.approx(std * scaling[name].init_std, rel=0.2)
    assert "fits 'blocks.*'" in run(*words, "--base-std", "blocks.*=1", code=1).err
    assert "'layers.*'" in run(*words, "--base-std", "layers.*", code=2).err


def test_what_cannot_be_a_base_is_named(run, folder, tmp_path):
    other = tmp_path / "other.json"
    description = json.loads((folder / "small.json").read_text())
    description["tensors"] = description["tensors"][1:]
    other.write_text(json.dumps(description))
    words = ("transform", folder / "large.pt2", "-o", tmp_path / "out.pt2", "--base")
    assert "base lacks tokens.weight" in run(*words, other, code=1).err
    assert "missing.json" in run(*words, tmp_path / "missing.json", code=1).err
    assert not (tmp_path / "out.pt2").exists()


def test_rates_behind_batchnorm_are_an_option(run, tmp_path):
    build, example, _ = MODELS["resnet"]
    api.save(wrap(api.trace(built(build, 8), (example(0),))), tmp_path / "model.pt2")
    rates = []
    for flag in ((), ("--lr-behind-batchnorm",)):
        out = tmp_path / "out.pt2"
        run("transform", tmp_path / "model.pt2", "-o", out, "--family", "masked", "--sparsity", "0.75", *flag)
        rates.append(sparsify.load(out).sparsify.scaling["layer1.conv1.weight"].adam_lr)
    assert rates == [1.0, pytest.approx(4.0, rel=0.01)]
