from __future__ import annotations

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsify
from sparsify.errors import BudgetError, UserError
from sparsify.train import Data
from sparsify.train.coord_check import coord_check
from sparsify.train.coord_check_data import RandomBatches
from sparsify.train.coord_check_record import Coordinates
from sparsify.train.coord_check_runs import Runs
from sparsify.train.coord_check_slopes import shares, slopes
from sparsify.train.sources import load_data
from sparsify.train.variants import Variant, Variants
from tests.models import MODELS
from tests.train import tasks

DENSITIES = (1.0, 1 / 4, 1 / 16)


def perceptron(width: int = 128, hidden: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, width), nn.ReLU()]
    for _ in range(hidden):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits")


@pytest.fixture(scope="module")
def traced():
    return sparsify.trace(perceptron(), (torch.zeros(2, 1, 8, 8),))


def check(traced, data, **options):
    return coord_check(traced, data, **{"densities": DENSITIES, "seeds": 2, "progress": False, **options})


@pytest.fixture(scope="module")
def whole(traced, digits):
    return check(traced, digits)


def test_supar_is_flat_and_the_others_are_not(whole):
    assert list(whole.judged) == ["3", "5", "7"] and all(whole.judged.values())
    assert whole.flat == {"supar": 1.0, "mup": 0.0, "sp": 0.0}
    assert whole.steep["supar"] == 0.0 and whole.steep["sp"] >= 0.5 and whole.steep["mup"] >= 0.5
    assert max(abs(slope) for slope in whole.initial_slopes["supar"].values()) < 0.1


def test_at_the_given_widths_mup_is_sp_and_all_agree_at_density_one(whole):
    assert whole.activations["mup"] == whole.activations["sp"]
    for layer, points in whole.activations["supar"].items():
        assert points[0] == whole.activations["sp"][layer][0]
        assert points[1] != whole.activations["sp"][layer][1]


def test_each_rule_shows_when_it_is_switched_off(traced, digits, whole):
    lr = whole.settings["lr"]
    without_init = check(traced, digits, parameterizations=["supar"], rules=["lr"], lr=lr)
    without_lr = check(traced, digits, parameterizations=["supar"], rules=["init"], lr=lr)
    # Without the init rule the first masked layer's output shrinks like √ρ, but for its bias.
    assert without_init.initial_slopes["supar"]["3"] > 0.35
    assert without_lr.initial_slopes["supar"] == whole.initial_slopes["supar"]
    assert max(without_lr.slopes["supar"].values()) > 0.35
    neither = check(traced, digits, parameterizations=["supar"], rules=(), lr=lr)
    for layer, slope in neither.slopes["supar"].items():
        assert slope == pytest.approx(whole.slopes["sp"][layer], abs=0.02)


def test_the_learning_rate_that_is_found_is_large_and_learns(traced, digits, whole):
    lr = whole.settings["lr"]
    assert math.log2(lr) == round(math.log2(lr))
    losses = {}
    for factor in (1 / 4, 1 / 2, 1, 2):
        options = {"densities": (1.0, 0.5), "seeds": 1, "lr": lr * factor}
        one = check(traced, digits, parameterizations=["sp"], **options).losses["sp"][0][0]
        losses[factor] = sum(one[-3:]) / 3
    fall = {factor: (one[0] - loss) / (one[0] - min(losses.values())) for factor, loss in losses.items()}
    assert fall[1] >= 0.98 > fall[2]


def test_the_result_is_json_and_the_plot_is_written(traced, digits, tmp_path):
    plot = tmp_path / "deep" / "check.png"
    found = check(traced, digits, parameterizations=["supar", "sp"], steps=2, lr=0.004, plot=plot)
    data = json.loads(json.dumps(found.to_dict()))
    assert set(data["slopes"]) == {"supar", "sp"} and set(data["slopes"]["sp"]) == {"3", "5", "7"}
    assert data["plot"] == str(plot) and plot.read_bytes().startswith(b"\x89PNG")
    assert [point["density"] for point in data["points"]] == list(DENSITIES)
    values = data["activations"]["supar"]["3"]
    assert (len(values), len(values[0]), len(values[0][0])) == (3, 2, 3)


def test_nothing_is_left_behind(digits):
    model = perceptron(32, 1)
    before = copy.deepcopy(model.state_dict())
    traced = sparsify.trace(model, (torch.zeros(2, 1, 8, 8),))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = check(traced, digits, steps=2, lr=0.01)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(traced.module, "_coordinates")
    assert check(traced, digits, steps=2, lr=0.01).activations == first.activations


@pytest.mark.parametrize("mode", ["width", "isoflop"])
def test_widths_and_the_diagonal(traced, digits, whole, mode):
    options = {"widths": (1, 2, 3), "densities": (0.25,)} if mode == "width" else {"densities": DENSITIES}
    options |= {"lr": whole.settings["lr"], "parameterizations": ["supar", "sp"], "seeds": 1}
    found = check(traced, digits, mode=mode, **options)
    widths = [point["width"] for point in found.points]
    densities = [point["density"] for point in found.points]
    assert widths == sorted(widths) and widths[0] == 1 and widths[-1] >= 3
    if mode == "width":
        assert densities == pytest.approx([0.25] * 3, rel=0.01)
    assert found.flat["supar"] == 1.0
    worst = {name: max(abs(slope) for slope in by.values()) for name, by in found.slopes.items()}
    assert worst["sp"] > 2 * worst["supar"]


def test_layers_behind_a_batch_norm_are_reported_and_not_judged():
    entry = MODELS["resnet"]
    traced = sparsify.trace(entry.model(), *entry.example(2, 8))
    found = check(traced, None, parameterizations=["sp"], steps=1, seeds=1, lr=0.001, batch_size=4)
    assert set(found.slopes["sp"]) == set(found.judged) and not any(found.judged.values())
    assert found.flat["sp"] is None and found.settings["data"] == "random inputs and targets"


def test_a_diverged_run_has_no_slope(traced, digits):
    found = check(traced, digits, parameterizations=["sp"], steps=4, seeds=1, lr=1e20)
    assert found.slopes["sp"] == {"3": None, "5": None, "7": None}
    assert None not in found.initial_slopes["sp"].values()
    assert found.flat["sp"] == 0.0 and found.steep["sp"] == 0.0


class Functional(nn.Module):
    """A bare weight that is used twice, between two modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.bare = nn.Parameter(torch.randn(16, 16) / 4)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = F.relu(F.linear(x, self.bare))
        return self.last(F.relu(F.linear(x, self.bare)))


def test_coordinates_read_every_call_of_modules_and_bare_weights():
    torch.manual_seed(0)
    model = Functional()
    x = torch.randn(5, 6)
    variants = Variants(sparsify.trace(model, (x,)))
    rewritten = variants.model(Variant(1.0), "sp", 0)
    expected = rewritten(x).detach()
    layers = {"first": "first.weight", "bare": "bare"}
    coordinates = Coordinates(rewritten, layers)
    assert torch.equal(rewritten(x), expected)
    weights = dict(rewritten.named_parameters())
    outputs = [F.linear(x, weights["first.weight"], weights["first.bias"])]
    for _ in range(2):
        outputs.append(F.linear(F.relu(outputs[-1]), weights["bare"]))
    means = [float(output.detach().abs().mean()) for output in outputs]
    taken = coordinates.take()
    assert taken["first"] == pytest.approx(means[0])
    assert taken["bare"] == pytest.approx((means[1] + means[2]) / 2)
    assert math.isnan(coordinates.take()["first"])


def test_random_tokens_fit_their_embedding_and_masks_stay_masks():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 8)
            self.fc = nn.Linear(8, 8)

        def forward(self, tokens, mask, scale):
            return self.fc(self.table(tokens)) * mask[..., None] * scale

    example = (
        torch.zeros(2, 5, dtype=torch.long),
        torch.zeros(2, 5, dtype=torch.long),
        torch.zeros(2, 1, 1),
    )
    traced = sparsify.trace(Tokens(), example)
    (tokens, mask, scale), named = RandomBatches(traced, 64).inputs(3, 0)
    assert named == {} and tokens.shape == mask.shape == (64, 5) and scale.shape == (64, 1, 1)
    assert int(tokens.min()) == 0 and int(tokens.max()) <= 10 and len(tokens.unique()) > 8
    assert torch.equal(mask, torch.ones_like(mask)) and scale.std() > 0.5
    assert torch.equal(RandomBatches(traced, 64).inputs(3, 0)[0][0], tokens)
    for seed, step in ((3, 1), (4, 0)):
        assert not torch.equal(RandomBatches(traced, 64).inputs(seed, step)[0][0], tokens)
    assert RandomBatches(traced, None).batch_size == math.ceil(1024 / 5)


def test_slopes_are_those_of_power_laws():
    x = [1.0, 0.5, 0.125]
    values = [[[3.0, 2 * density**0.5], [3.0, 5 * density**1.5]] for density in x]
    assert slopes(x, values, 0) == pytest.approx((0.0, 0.0))
    assert slopes(x, values, -1) == pytest.approx((1.0, 0.5))
    values[1][0][1] = 0.0
    assert slopes(x, values, 1) == (None, None) and slopes(x, values, 0)[0] is not None
    judged = {"a": True, "b": True, "c": False}
    assert shares({"a": 0.1, "b": None, "c": 9.0}, judged, lambda slope: slope < 1) == 0.5
    assert shares({"c": 0.1}, {"c": False}, lambda slope: True) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"parameterizations": ["ntk"]}, "'ntk' is not one of supar, mup, sp"),
        ({"parameterizations": []}, "no parameterization was given"),
        ({"densities": [0.5]}, "at least two densities"),
        ({"densities": [1.0, 0.0]}, "kept share"),
        ({"mode": "depth"}, "'depth' is not one of density, width, isoflop"),
        ({"mode": "width", "densities": [1.0, 0.5]}, "at one density, 2 were given"),
        ({"rules": ["forward"]}, "'forward' is not one of init, lr"),
        ({"optimizer": "lion"}, "'lion' is not one of adamw, sgd"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"density_exponent": 2.0}, r"density_exponent must lie in \(0, 1\]"),
        ({"output_multiplier": 0.0}, "output_multiplier must be positive"),
        ({"base_std": {"4.weight": 0.1}}, "no parameter '4.weight'"),
        ({"only": ("nothing.*",)}, "nothing"),
    ],
)
def test_options_that_do_not_fit_are_named(traced, digits, options, reason):
    with pytest.raises(UserError, match=reason):
        check(traced, digits, **options)


def test_what_cannot_be_checked_is_said_before_anything_runs(traced, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Runs, "all", None)
    readout = sparsify.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), (torch.zeros(2, 1, 8, 8),))
    with pytest.raises(BudgetError, match="nothing to mask: the model has no hidden linear"):
        check(readout, digits)
    with pytest.raises(UserError, match="does not run on this data, with inputs"):
        check(traced, tasks.points())
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        check(traced, digits, plot=tmp_path / "file" / "plot.png")


def test_the_rate_that_is_found_is_the_bases(digits):
    """Under a base, the dense model learns at the base's rates: the one that is found is relative to it."""
    traced = sparsify.trace(perceptron(128, 1), (torch.zeros(2, 1, 8, 8),))
    base = sparsify.api.as_base(perceptron(16, 1), (torch.zeros(2, 1, 8, 8),), None)
    options = {"densities": (1.0, 0.5), "parameterizations": ["supar"], "seeds": 1, "steps": 5}
    alone = check(traced, digits, **options).settings["lr"]
    assert check(traced, digits, base=base, **options).settings["lr"] >= 2 * alone


def test_the_public_verb_takes_models_data_and_archives(digits, tmp_path):
    model = perceptron(32, 1)
    options = {"steps": 1, "seeds": 1, "lr": 0.01, "densities": (1.0, 0.5), "progress": False}
    by_data = sparsify.coord_check(model, "digits", **options)
    by_both = sparsify.coord_check(model, (torch.zeros(2, 1, 8, 8),), data=digits, **options)
    assert by_data.activations == by_both.activations
    assert (
        sparsify.coord_check(model, (torch.zeros(2, 1, 8, 8),), **options)
        .settings["data"]
        .startswith("random")
    )
    with pytest.raises(UserError, match="example of the model's inputs"):
        sparsify.coord_check(model, **options)
    sparse = sparsify.transform(model, (torch.zeros(2, 1, 8, 8),), family="masked", sparsity=0.5)
    with pytest.raises(UserError, match="masked model already"):
        sparsify.coord_check(sparse, "digits", **options)
