"""At density 1 the scaling is that of `mup` 1.0.0, tensor by tensor, and so are outputs and training.

Where conventions differ is said at each place: `mup` corrects rates behind BatchNorm too, leaves Adam's ε
alone, and rescales default initial weights in place, where the base's are measured here.
"""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import nn

import sparsify
from sparsify.passes.base_model import base_of
from tests.scaling.widths import HEADS, MODELS, built

mup = pytest.importorskip("mup", reason="the reference implementation of μP is not installed")

BASE, WIDE = 16, 48


@functools.cache
def known(name):
    """The trace of the wide model and what is known of the narrow one."""
    build, example, _ = MODELS[name]
    args = (example(0),)
    return sparsify.trace(built(build, WIDE), args), base_of(sparsify.trace(built(build, BASE), args))


def transformed(name, parameterization="supar", **options):
    traced, base = known(name)
    model = sparsify.transform(
        traced,
        base=base,
        family="masked",
        sparsity=0.0,
        parameterization=parameterization,
        lr_behind_batchnorm=True,
        **options,
    )
    return model.eval()


def in_mup(name):
    """The model as a user of `mup` writes it: MuReadout for the readout, 1/d for 1/√d in attention."""
    build, _, head = MODELS[name]
    models = []
    for width in (WIDE, BASE):
        model = built(build, width)
        readout = getattr(model, head)
        setattr(model, head, mup.MuReadout(readout.in_features, readout.out_features))
        for module in model.modules():
            if hasattr(module, "scale"):
                module.scale = math.sqrt(BASE // HEADS) / (width // HEADS)
        models.append(model)
    return mup.set_base_shapes(models[0], models[1])


def factors(optimizer, names, lr):
    """Factors on learning rate and weight decay by parameter name."""
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"] / lr, group["weight_decay"])
    return found


@pytest.mark.parametrize(
    ("name", "parameterization"), [*((name, "supar") for name in MODELS), ("transformer", "mup")]
)
def test_rates_and_decay_are_those_of_mup(name, parameterization):
    ours, theirs = transformed(name, parameterization), in_mup(name)
    for column, torch_optimizer, mup_optimizer in (
        ("adamw", torch.optim.AdamW, mup.MuAdamW),
        ("adamw", torch.optim.Adam, mup.MuAdam),
        ("sgd", torch.optim.SGD, mup.MuSGD),
    ):
        groups = sparsify.param_groups(ours, lr=0.5, weight_decay=0.25, optimizer=column)
        own = factors(torch_optimizer(groups), {id(p): n for n, p in ours.named_parameters()}, 0.5)
        reference = mup_optimizer(theirs.parameters(), lr=0.5, weight_decay=0.25)
        wanted = factors(reference, {id(p): n for n, p in theirs.named_parameters()}, 0.5)
        assert own.keys() == wanted.keys() and len({rate for rate, _ in wanted.values()}) > 1
        for fqn, expected in wanted.items():
            assert own[fqn] == pytest.approx(expected, rel=1e-12), (column, fqn)


def drawn_with(draw, tensor):
    """The standard deviation that an initialiser draws a tensor with, to rounding: the same draws divided."""
    torch.manual_seed(0)
    scaled = draw(tensor).detach().clone()
    torch.manual_seed(0)
    plain = draw(copy.copy(tensor.detach().clone()), reference=True)
    ratio = (scaled / plain)[plain.abs() > 1e-3]
    assert float(ratio.std()) < 1e-4 * float(ratio.mean())
    return float(ratio.mean())


def initialiser(name, **options):
    """An initialiser of `mup`, or of the same draws at scale 1."""

    def draw(tensor, reference=False):
        if not reference:
            with torch.no_grad():
                return getattr(mup.init, name)(tensor, **options)
        if "normal" in name:
            return torch.nn.init.normal_(tensor)
        return torch.nn.init.uniform_(tensor, -1, 1)

    return draw


INITIALISERS = {
    "normal": initialiser("normal_", std=0.02),
    "uniform": initialiser("uniform_", a=-0.1, b=0.1),
    "xavier normal": initialiser("xavier_normal_"),
    "xavier uniform": initialiser("xavier_uniform_"),
    "kaiming normal": initialiser("kaiming_normal_"),
    "kaiming uniform, fan-out": initialiser("kaiming_uniform_", mode="fan_out", nonlinearity="relu"),
}


@pytest.mark.parametrize("draw", INITIALISERS.values(), ids=INITIALISERS)
@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer"])
def test_initial_weights_have_the_factors_of_mups_initialisers(name, draw):
    scaling, theirs = transformed(name).sparsify.scaling, in_mup(name)
    base = mup.set_base_shapes(copy.deepcopy(built(MODELS[name][0], BASE)), None, do_assert=False)
    small = dict(base.named_parameters())
    compared = set()
    for fqn, parameter in theirs.named_parameters():
        if parameter.ndim > 1:
            found = drawn_with(draw, parameter) / drawn_with(draw, small[fqn])
            assert scaling[fqn].init_std == pytest.approx(found, rel=1e-4), fqn
            compared.add(scaling[fqn].role)
    assert compared >= {"hidden", "readout"} and len(compared) > 2


@pytest.mark.parametrize("name", ["mlp", "resnet", "transformer"])
def test_weights_are_drawn_as_wide_as_mups_rescaled_defaults(name):
    """`mup` multiplies a readout and biases by √m_in, since torch draws them at the model's own fan-in."""
    ours, theirs = transformed(name), dict(in_mup(name).named_parameters())
    compared = 0
    for fqn, parameter in ours.named_parameters():
        deviation = float(theirs[fqn].detach().std()) if parameter.numel() > 1 else 0.0
        if deviation > 0:
            noise = 5 / math.sqrt(
                2 * min(parameter.numel(), 16 if parameter.ndim == 1 else parameter.numel())
            )
            assert float(parameter.detach().std()) == pytest.approx(deviation, rel=noise + 0.08), fqn
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", MODELS)
def test_the_same_weights_compute_the_same(name):
    ours, theirs = transformed(name), in_mup(name).eval()
    theirs.load_state_dict(weights(ours, theirs))
    x = MODELS[name][1](1)
    got, wanted = ours(x), theirs(x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        getattr(theirs, MODELS[name][2]).weight.mul_(1.01)
    assert not torch.allclose(got, theirs(x), rtol=1e-4, atol=1e-6)


def weights(ours, theirs):
    state = ours.state_dict()
    return {key: state.get(key, value) for key, value in theirs.state_dict().items()}


OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, mup.MuAdamW, {}),
    "sgd": (torch.optim.SGD, mup.MuSGD, {"momentum": 0.9}),
}


@pytest.mark.parametrize("column", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_training_goes_the_same_way(name, column):
    """Three steps with weight decay; `mup` does not scale Adam's ε, so that rule is off here."""
    ours, theirs = transformed(name).double(), in_mup(name).double()
    theirs.load_state_dict(weights(ours, theirs))
    plain, reference, options = OPTIMIZERS[column]
    start = {fqn: p.detach().clone() for fqn, p in ours.named_parameters()}
    given = {"lr": 0.01, "weight_decay": 0.1}
    groups = sparsify.param_groups(ours, optimizer=column, scale_eps=False, **given)
    pairs = (
        (ours.train(), plain(groups, lr=0.01, **options)),
        (theirs.train(), reference(theirs.parameters(), **given, **options)),
    )
    for step in range(3):
        x = MODELS[name][1](step)
        for model, optimizer in pairs:
            optimizer.zero_grad()
            out = model(x.double() if x.is_floating_point() else x)
            nn.functional.cross_entropy(out.flatten(0, -2), torch.arange(out[..., 0].numel()) % 5).backward()
            optimizer.step()
    moved = dict(theirs.named_parameters())
    for fqn, parameter in ours.named_parameters():
        assert not torch.equal(parameter, start[fqn])
        torch.testing.assert_close(parameter, moved[fqn], rtol=1e-7, atol=1e-9)
