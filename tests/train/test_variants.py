"""Variants of studies are what `transform` makes with the same options, and train as it says."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import UserError
from sparsify.masks import masked_parameters
from sparsify.passes.scaled import ScalingOptions
from sparsify.train import finetune
from sparsify.train.coord_check_data import DataBatches
from sparsify.train.variants import Variant, Variants
from tests.scaling.widths import MODELS, built
from tests.train.tasks import points

BASE, WIDE = 8, 24
OPTIONS = {
    "density_exponent": 0.5,
    "lr_behind_batchnorm": True,
    "input_multiplier": 2.0,
    "output_multiplier": 0.5,
}
SPREADS = {"2.weight": 0.3}
EXAMPLE = (torch.zeros(2, 6),)


def network(width: int) -> nn.Sequential:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Linear(6, width),
        nn.BatchNorm1d(width),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 3),
    )


def transformed(density=0.25, parameterization="supar", **options):
    chosen = {"family": "masked", "sparsity": 1 - density, "parameterization": parameterization}
    given = {"base": network(BASE), "base_std": SPREADS, **OPTIONS}
    return sparsify.transform(network(WIDE), EXAMPLE, **chosen, **{**given, **options})


def groups(model, lr=2**-6):
    listed = sparsify.param_groups(model, lr=lr, weight_decay=0.1)
    return [{name: value for name, value in group.items() if name != "params"} for group in listed]


@pytest.mark.parametrize("name", ["transformer", "resnet"])
def test_a_variant_has_the_weights_factors_and_groups_of_transform(name):
    build, example, _ = MODELS[name]
    wide = sparsify.trace(built(build, 32), (example(0),))
    base = sparsify.api.as_base(built(build, 16), (example(0),), None)
    variants = Variants(wide, scaling=ScalingOptions(base=base, **OPTIONS))
    compared = 0
    masked, wider = {"family": "masked", "sparsity": 0.75}, {"family": "wide", "sparsity": 0.75}
    for variant, planned, rule in (
        (Variant(0.25), masked, "supar"),
        (Variant(0.25), masked, "sp"),
        (Variant(0.25, "isoflop"), wider, "supar"),
    ):
        own = variants.model(variant, rule, seed=3)
        expected = sparsify.transform(wide, base=base, parameterization=rule, seed=3, **OPTIONS, **planned)
        assert own.sparsify.scaling == expected.sparsify.scaling == variants.scaling(variant, rule)
        assert groups(own) == groups(expected)
        states = own.state_dict(), expected.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        x = example(1)
        assert torch.equal(own.eval()(x), expected.eval()(x))
        compared += len(states[0])
    assert compared > 20
    heads = variants.same(Variant(1.0), "mup")[-1]
    assert [one.factor for one in heads] == [pytest.approx(0.5**0.5)] * (2 if name == "transformer" else 0)


def test_a_variant_that_is_to_be_pruned_starts_as_transform_starts_it():
    wide = sparsify.trace(network(WIDE), EXAMPLE)
    variants = Variants(wide, {"pattern": "fan-in"}, initial_density=0.5)
    own = variants.model(Variant(0.25), "supar", seed=3)
    planned = {"family": "masked", "sparsity": 0.75, "pattern": "fan-in", "initial_density": 0.5}
    expected = sparsify.transform(wide, seed=3, **planned)
    assert own.sparsify.scaling == expected.sparsify.scaling == variants.scaling(Variant(0.25), "supar")
    states = own.state_dict(), expected.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert {float(entry.mask.float().mean()) for entry in masked_parameters(own).values()} == {0.5}
    unlike = Variants(wide, {"pattern": "fan-in"}).scaling(Variant(0.25), "supar")
    assert unlike != own.sparsify.scaling


def test_parameterizations_are_one_run_only_where_they_agree():
    wide = sparsify.trace(network(WIDE), EXAMPLE)
    plain, based = Variants(wide), Variants(wide, scaling=ScalingOptions(base=base_of(BASE)))
    sparse, dense = Variant(0.25), Variant(1.0)
    assert plain.same(sparse, "mup") == plain.same(sparse, "sp") != plain.same(sparse, "supar")
    assert plain.same(dense, "supar") == plain.same(dense, "sp")
    assert based.same(dense, "supar") == based.same(dense, "mup") != based.same(dense, "sp")


def base_of(width):
    return sparsify.api.as_base(network(width), EXAMPLE, None)


def test_a_sweep_trains_what_transform_and_finetune_do(tmp_path):
    training = {"steps": 5, "batch_size": 8, "weight_decay": 0.1, "warmup": 0.2}
    cells = {"lrs": [2**-6], "densities": [0.25], "parameterizations": ["supar", "sp"], "progress": False}
    sparsify.save_base(network(BASE), tmp_path / "base.json", EXAMPLE)
    losses = {}
    for base in (network(BASE), tmp_path / "base.json", base_of(BASE)):
        found = sparsify.sweep(
            network(WIDE), points(), base=base, base_std=SPREADS, **cells, **training, **OPTIONS
        )
        for cell, outcome in found.outcomes.items():
            losses.setdefault(cell.parameterization, set()).add(outcome.loss)
    for name in ("supar", "sp"):
        options = {"method": "static", "lr": 2**-6, "seed": 0, "evaluate_every": 5, "progress": False}
        alone = finetune(transformed(parameterization=name), points(), **options, **training)
        assert losses[name] == {alone.metrics["loss"]}
    unlike = sparsify.sweep(network(WIDE), points(), **cells, **training)
    assert {one.loss for one in unlike.outcomes.values()}.isdisjoint(losses["supar"] | losses["sp"])


def test_the_file_of_a_sweep_knows_its_base(tmp_path):
    options = {"lrs": [2**-6], "densities": [0.25], "parameterizations": ["supar"], "steps": 3}
    options |= {**OPTIONS, "base_std": SPREADS, "progress": False, "output": tmp_path}
    sparsify.sweep(network(WIDE), points(), base=network(BASE), **options)
    settings = json.loads((tmp_path / "sweep.json").read_text())["settings"]
    assert settings["input_multiplier"] == 2.0 and settings["base_std"] == SPREADS
    assert len(settings["base"]) == 16
    with pytest.raises(UserError, match="another sweep: base"):
        sparsify.sweep(network(WIDE), points(), base=network(BASE + 4), **options)


def test_options_of_a_sweep_can_be_put_right_before_its_first_cell(tmp_path):
    options = {"lrs": [2**-6], "densities": [0.25], "parameterizations": ["supar"], "steps": 2}
    options |= {"progress": False, "output": tmp_path}
    with pytest.raises(UserError, match="no parameter 'third"):
        sparsify.sweep(network(WIDE), points(), base_std={"third.weight": 0.1}, **options)
    assert len(sparsify.sweep(network(WIDE), points(), base_std=SPREADS, **options).outcomes) == 1


def test_a_coordinate_check_starts_and_steps_as_transform_and_param_groups_do():
    lr, data = 2**-6, points()
    found = sparsify.coord_check(
        network(WIDE),
        data=data,
        densities=(1.0, 0.25),
        parameterizations=["supar", "sp"],
        steps=1,
        seeds=1,
        lr=lr,
        batch_size=8,
        base=network(BASE),
        base_std=SPREADS,
        progress=False,
        **OPTIONS,
    )
    source = DataBatches(data, 8)
    for name in ("supar", "sp"):
        model = transformed(parameterization=name).train()
        optimizer = torch.optim.AdamW(sparsify.param_groups(model, lr=lr), lr=lr)
        outputs: list[torch.Tensor] = []
        model.get_submodule("4").register_forward_hook(lambda *call, seen=outputs: seen.append(call[2]))
        source.loss(model, 0, 0).backward()
        optimizer.step()
        source.loss(model, 0, 1)
        means = [float(output.detach().abs().mean()) for output in outputs]
        assert found.activations[name]["4"][1][0] == pytest.approx(means)
    said = found.settings
    assert said["density_exponent"] == 0.5 and len(said["base"]) == 16


def test_a_base_of_another_architecture_is_refused():
    other = nn.Sequential(*list(network(BASE))[:-2])
    for study in (sparsify.coord_check, sparsify.sweep):
        options = {"lrs": [0.1]} if study is sparsify.sweep else {"densities": (1.0, 0.5)}
        with pytest.raises(UserError, match="base lacks 6"):
            study(network(WIDE), points(), base=other, progress=False, **options)
