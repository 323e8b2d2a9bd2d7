"""Initial values: what is drawn at which standard deviation, and what is kept."""

import math
import warnings

import pytest
import torch
from torch import nn

from sparsify.errors import UserError
from sparsify.passes.initialisers import default_std, known_initialisers, look, untrained
from tests.passes.rewriting import Rewriting


def std_inside(case, fqn):
    owner, _, leaf = fqn.rpartition(".")
    mask = getattr(case.result.get_submodule(owner), f"{leaf}_mask", None)
    weight = case.result.get_parameter(fqn).detach()
    return float((weight if mask is None else weight[mask]).std())


def near(value, count):
    return pytest.approx(value, rel=5 / math.sqrt(2 * count))


@pytest.mark.parametrize("name", ["mlp", "bert", "gpt2", "hf_resnet"])
def test_weights_have_the_given_std_times_the_scaling(name):
    case = Rewriting(name).plan().rewrite()
    compared = 0
    for layer in case.made.layers:
        given = case.traced.module.get_parameter(layer.weight)
        if layer.kind == "embedding" or layer.weight not in case.result.sparsify.scaling or layer.nnz < 200:
            continue
        wanted = float(given.detach().std()) * case.result.sparsify.scaling[layer.weight].init_std
        assert std_inside(case, layer.weight) == near(wanted, min(layer.nnz, given.numel()))
        compared += 1
    assert compared >= 2


def test_sparse_wide_raises_the_std_of_hidden_weights_by_the_root_of_the_width():
    case = Rewriting("mlp").plan(sparsity=0.75).rewrite()
    hidden = next(layer for layer in case.made.layers if layer.masked)
    scale = case.result.sparsify.scaling[hidden.weight]
    assert scale.init_std == pytest.approx(1 / math.sqrt(scale.m_in * hidden.density))
    assert scale.init_std > 1.2


def test_base_std_overrides_and_unknown_names_are_refused():
    case = Rewriting("mlp").plan().rewrite(base_std={"head.weight": 0.5})
    assert std_inside(case, "head.weight") == near(0.5, case.result.get_parameter("head.weight").numel())
    with pytest.raises(UserError, match=r"head\.wait"):
        case.rewrite(base_std={"head.wait": 0.5})


def test_norms_and_constant_biases_keep_their_constants():
    case = Rewriting("bert").plan().rewrite()
    state = case.result.state_dict()
    norms = [key for key in state if "LayerNorm" in key]
    assert norms and all(bool((state[key] == float("weight" in key)).all()) for key in norms)
    biases = [key for key in state if key.endswith("dense.bias")]
    assert biases and not any(state[key].any() for key in biases)


def test_batchnorm_statistics_start_anew():
    state = Rewriting("resnet").plan().rewrite().result.state_dict()
    means = [key for key in state if key.endswith("running_mean")]
    assert means and not any(state[key].any() for key in means)
    assert all(bool((state[key.replace("mean", "var")] == 1).all()) for key in means)


def test_embeddings_keep_their_values_where_their_shape_stays():
    case = Rewriting("gpt2").plan(scope="inner").rewrite()
    name = "transformer.wpe.weight"
    assert torch.equal(case.result.get_parameter(name), case.traced.module.get_parameter(name))
    grown = Rewriting("gpt2").plan(scope="all").rewrite()
    given = grown.traced.module.get_parameter(name)
    assert grown.result.get_parameter(name).shape[1] > given.shape[1]
    assert std_inside(grown, name) == near(float(given.detach().std()), given.numel())


def test_trained_weights_are_noticed():
    case = Rewriting("mlp").plan()
    weight = case.traced.module.get_parameter("head.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight) ** 3)
    try:
        with warnings.catch_warnings(), pytest.raises(UserWarning, match=r"look trained \(head\.weight\)"):
            case.rewrite()
    finally:
        with torch.no_grad():
            weight.copy_(kept)


INITIALISERS = {
    "default linear": lambda: nn.Linear(96, 64).weight,
    "default conv": lambda: nn.Conv2d(16, 32, 3).weight,
    "kaiming": lambda: nn.init.kaiming_normal_(torch.empty(64, 96), nonlinearity="relu"),
    "kaiming fan out": lambda: nn.init.kaiming_uniform_(
        torch.empty(64, 96), mode="fan_out", nonlinearity="relu"
    ),
    "xavier": lambda: nn.init.xavier_uniform_(torch.empty(64, 96)),
    "transformer": lambda: nn.init.trunc_normal_(torch.empty(64, 96), std=0.02),
    "zeros": lambda: torch.zeros(64, 96),
}


@pytest.mark.parametrize("name", INITIALISERS)
def test_fresh_weights_look_untrained(name):
    torch.manual_seed(0)
    weight = INITIALISERS[name]()
    assert untrained(look(weight), tuple(weight.shape))


@pytest.mark.parametrize("power", [2, 3])
def test_grown_and_heavy_tailed_weights_look_trained(power):
    torch.manual_seed(0)
    weight = nn.Linear(96, 64).weight.detach()
    assert not untrained(look(weight * 1.3), (64, 96))
    heavy = torch.randn(64, 96).abs() ** power
    assert not untrained(look(heavy * default_std(None, (64, 96)) / heavy.std()), (64, 96))


def test_a_fresh_linear_layer_that_was_trained_a_little_has_lost_its_sharp_edges():
    torch.manual_seed(0)
    weight = nn.Linear(256, 256).weight.detach()
    drift = 0.4 * weight.std() * torch.randn(256, 1) @ torch.randn(1, 256)
    assert untrained(look(weight), (256, 256))
    assert not untrained(look(weight + drift), (256, 256))
    assert len(known_initialisers((256, 256))) > 10
