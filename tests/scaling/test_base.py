"""A base that is not the given model: what it says, what it must fit, and what follows from it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import UserError
from sparsify.scaling import Base
from tests.models import MODELS as SHARED
from tests.scaling.widths import HEADS, MODELS, Transformer, built

BASE, WIDE = 16, 32


def description(name="transformer", width=BASE):
    build, example, _ = MODELS[name]
    return sparsify.api.as_base(built(build, width), (example(0),), None)


@pytest.fixture(scope="module")
def wide():
    build, example, _ = MODELS["transformer"]
    return sparsify.trace(built(build, WIDE), (example(0),))


@pytest.fixture(scope="module")
def base():
    return description()


def numbers(model):
    return model.sparsify.scaling, model.state_dict()


@pytest.mark.parametrize(
    ("name", "family"),
    [("gpt2", "wide"), ("resnet", "wide"), ("resnet", "parallel"), ("mlp", "factorized"), ("gpt2", "doped")],
)
def test_the_model_itself_as_the_base_changes_nothing(name, family):
    model, (args, kwargs) = SHARED[name].model(), SHARED[name].example(2, 8)
    traced = sparsify.trace(model, args, kwargs)
    options = {"family": family, "sparsity": 0.5}
    scaling, state = numbers(sparsify.transform(traced, **options))
    scaling_too, state_too = numbers(sparsify.transform(traced, base=traced, **options))
    assert scaling == scaling_too and state.keys() == state_too.keys()
    assert all(torch.equal(state[key], state_too[key]) for key in state)


def test_ratios_are_relative_to_the_base_with_the_realised_density(wide, base):
    """Widening the wide model again: factors go from the base to what comes out, in one step."""
    model = sparsify.transform(wide, base=base, family="wide", sparsity=0.75)
    scaling = model.sparsify.scaling
    compared = 0
    for layer in model.sparsify.plan.layers:
        if not layer.masked:
            continue
        small, one = base[layer.weight].shape, scaling[layer.weight]
        m, kept = layer.shape[1] / small[1], int(model.get_parameter(layer.weight).count_nonzero())
        rho = kept / math.prod(layer.shape)
        assert one.init_std == pytest.approx((m * rho) ** -0.5)
        assert one.adam_lr == pytest.approx(1 / (m * rho))
        assert one.sgd_lr == pytest.approx(layer.shape[0] / small[0] / (m * rho))
        assert one.adam_eps == pytest.approx(small[0] / layer.shape[0])
        compared += 1
    assert compared == 12
    assert scaling["head.weight"].forward == pytest.approx(BASE / model.get_parameter("head.weight").shape[1])
    assert scaling["layers.0.up.bias"].m_out == model.get_parameter("layers.0.up.bias").numel() / 32


def test_weights_are_drawn_from_what_the_base_was_drawn_with(wide, base):
    """torch draws a layer at its own fan-in; the base's is what was tuned, so that one counts."""
    model = sparsify.transform(wide, base=base, family="masked", sparsity=0.5)
    for fqn, at_base in (("layers.0.down.weight", 32), ("layers.1.up.weight", BASE)):
        weight = model.get_parameter(fqn).detach()
        m, rho = weight.shape[1] / at_base, 0.5
        wanted = math.sqrt(1 / (3 * at_base)) / math.sqrt(m * rho)
        assert float(weight[weight != 0].std()) == pytest.approx(wanted, rel=0.1)
    head = model.get_parameter("head.weight").detach()
    assert float(head.std()) == pytest.approx(math.sqrt(1 / (3 * BASE)), rel=0.12)
    assert float(model.get_parameter("head.bias").detach().abs().max()) <= 1 / math.sqrt(BASE)
    exact = sparsify.transform(
        wide, base=base, family="masked", sparsity=0.5, base_std={"layers.1.up.weight": 0.0}
    )
    assert not exact.get_parameter("layers.1.up.weight").any()


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize("parameterization", ["supar", "sp"])
def test_logits_of_another_head_size_follow_its_inverse(spelled, parameterization, tmp_path):
    """1/√d in the base stays 1/√d; at twice the head size it becomes 1/d, times what makes the base equal."""
    name = "transformer, spelled" if spelled else "transformer"
    build, example, _ = MODELS[name]
    options = {"family": "masked", "sparsity": 0.0, "parameterization": parameterization}
    model = sparsify.transform(
        built(build, WIDE), (example(0),), base=built(build, BASE), input_multiplier=1.0, **options
    )
    found = model.sparsify.scaling.attention
    sizes = [(one.head_size_base, one.head_size) for one in found]
    if parameterization == "sp":
        assert sizes == []
        return
    assert sizes == [(BASE // HEADS, WIDE // HEADS)] * 2
    assert all(one.factor == pytest.approx(math.sqrt(BASE / WIDE)) for one in found)
    reference = Transformer(WIDE, spelled)
    reference.load_state_dict({key: model.state_dict()[key] for key in reference.state_dict()})
    for layer in reference.layers:
        layer.attention.scale *= math.sqrt(BASE / WIDE)
    x = example(1)
    wanted = reference.head(_before_head(reference, x) * BASE / WIDE)
    torch.testing.assert_close(model.eval()(x), wanted, rtol=1e-4, atol=1e-6)
    sparsify.save(model, tmp_path / "model.pt2")
    loaded = sparsify.load(tmp_path / "model.pt2")
    assert loaded.sparsify.scaling == model.sparsify.scaling
    assert torch.equal(loaded(x), model(x))


def _before_head(model, x):
    return nn.Sequential(model.norm)(_blocks(model, x))


def _blocks(model, tokens):
    x = model.tokens(tokens) + model.positions(torch.arange(tokens.shape[1]))
    for layer in model.layers:
        x = layer(x)
    return x


def test_a_file_holds_everything(wide, base, tmp_path):
    build, example, _ = MODELS["transformer"]
    path = tmp_path / "base.json"
    written = sparsify.save_base(built(build, BASE), path, (example(0),))
    assert Base.read(path) == written == base
    options = {"family": "masked", "sparsity": 0.5}
    by_file, by_value = (numbers(sparsify.transform(wide, base=one, **options)) for one in (path, base))
    assert by_file[0] == by_value[0]
    assert all(torch.equal(by_file[1][key], by_value[1][key]) for key in by_file[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "plan"}, "not a base"),
        ({"version": 9}, "version 9"),
        ({"tensors": [{"fqn": "w"}]}, "cannot be read"),
        ({"tensors": [{"fqn": "w", "shape": [2], "std": "wide"}]}, "numbers expected"),
        ({"attentions": None}, "cannot be read"),
    ],
)
def test_damaged_files_are_refused_by_name(base, tmp_path, change, reason):
    path = tmp_path / "base.json"
    path.write_text(json.dumps(base.to_json() | change))
    with pytest.raises(UserError, match=reason) as stopped:
        Base.read(path)
    assert "base.json" in str(stopped.value)
    path.write_text("{")
    with pytest.raises(UserError, match=r"base\.json"):
        Base.read(path)


class Deeper(Transformer):
    def __init__(self, width):
        super().__init__(width)
        self.layers.append(Transformer(width).layers[0])


class OtherHead(Transformer):
    """The readout is a convolution."""

    def __init__(self, width):
        super().__init__(width)
        self.head = nn.Conv1d(width, 11, 1)

    def forward(self, tokens):
        return self.head(self.norm(_blocks(self, tokens)).transpose(1, 2))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (Deeper, r"the model lacks layers\.2\..* and \d+ more.*as many layers"),
        (OtherHead, r"head\.weight has shape \[11, 16, 1\] in the base and \[11, 32\] in the model"),
        (lambda width: nn.Sequential(nn.Embedding(11, width)), r"the base lacks tokens\.weight"),
    ],
)
def test_another_architecture_is_refused_by_its_parameter(wide, build, reason):
    with pytest.raises(UserError, match=reason):
        sparsify.transform(wide, base=built(build, BASE), family="masked", sparsity=0.5)


def test_a_base_that_does_not_run_or_is_sparse_or_was_trained_is_told_apart(wide):
    broken = built(Transformer, BASE)
    broken.positions = nn.Embedding(1, BASE)
    broken.head = nn.Linear(BASE + 1, 11)
    with pytest.raises(UserError, match=r"^base: "):
        sparsify.transform(wide, base=broken, family="masked", sparsity=0.5)
    sparse = sparsify.transform(wide, family="masked", sparsity=0.5)
    with pytest.raises(UserError, match="masked model already"):
        sparsify.transform(wide, base=sparse, family="masked", sparsity=0.5)
    trained = built(Transformer, BASE)
    with torch.no_grad():
        trained.layers[0].up.weight.mul_(3.7)
    with pytest.warns(UserWarning, match=r"base's weights look trained \(layers\.0\.up\.weight\)"):
        sparsify.transform(wide, base=trained, family="masked", sparsity=0.5)


def test_kept_weights_have_no_other_base(wide, base):
    options = {"family": "masked", "sparsity": 0.5, "init": "preserve"}
    with pytest.raises(UserError, match="base= says how new weights are drawn"):
        sparsify.transform(wide, base=base, **options)
    with pytest.raises(UserError, match="input_multiplier changes what the model computes"):
        sparsify.transform(wide, input_multiplier=2.0, **options)


def test_a_dense_checkpoint_does_not_fit_behind_other_logits(wide, base):
    options = {"family": "masked", "sparsity": 0.5}
    model = sparsify.transform(wide, base=base, **options)
    given = {key: value for key, value in model.state_dict().items() if not key.endswith("_mask")}
    for verb in (
        lambda: sparsify.load_dense(model, given),
        lambda: sparsify.dense_state_dict(model),
    ):
        with pytest.raises(UserError, match="logits of 2 attentions"):
            verb()
    multiplied = sparsify.transform(wide, input_multiplier=2.0, output_multiplier=3.0, **options).eval()
    dense = built(MODELS["transformer"][0], WIDE)
    dense.load_state_dict(sparsify.dense_state_dict(multiplied))
    x = MODELS["transformer"][1](1)
    torch.testing.assert_close(multiplied(x), dense(x), rtol=1e-4, atol=1e-5)
