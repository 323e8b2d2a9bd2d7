"""First values and scaling of branches, factors and sparse parts, from realised numbers."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsify.graph.facts import facts
from sparsify.graph.trace import trace
from sparsify.masks.state import masked_parameters
from sparsify.passes import rewrite
from sparsify.planning import plan

WIDE = 192


class Stack(nn.Module):
    """Hidden layers of one shape: one with a ReLU behind it, one with a LayerNorm alone, one with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, WIDE), nn.Linear(WIDE, 4)
        self.active, self.normed, self.plain = (nn.Linear(WIDE, WIDE) for _ in range(3))
        self.norm = nn.LayerNorm(WIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.active(self.stem(x)))
        return self.head(torch.sin(self.plain(torch.softmax(self.norm(self.normed(x)), -1))))


def made(change=lambda model: None, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Stack().eval()
    with torch.no_grad():
        change(model)
    traced = trace(model, (torch.randn(3, 16),))
    known = facts(traced)
    parameterization = options.pop("parameterization", "supar")
    return model, rewrite(
        traced, plan(traced, facts=known, **options), facts=known, parameterization=parameterization
    )


def std(model, fqn):
    weight = model.get_parameter(fqn).detach()
    entry = masked_parameters(model).get(fqn)
    return float((weight if entry is None else weight[entry.mask]).std())


def near(value):
    return pytest.approx(value, rel=0.03)


DEFAULT = 1 / math.sqrt(3 * WIDE)


def test_branches_are_drawn_wider_by_the_root_of_their_density():
    _, model = made(family="parallel", sparsity=0.75)
    scale = model.sparsify.scaling["active.branches.1.weight"]
    relu = math.sqrt(0.5 / (4 * (0.5 - 1 / (2 * math.pi)) + 16 / (2 * math.pi)))
    assert std(model, "active.branches.1.weight") == near(2 * DEFAULT)
    assert (scale.forward, scale.adam_lr, scale.sgd_lr) == pytest.approx(
        (relu, 1 / relu, 1 / relu**2), rel=1e-4
    )
    assert model.sparsify.scaling["normed.branches.0.weight"].forward == pytest.approx(0.5)


def test_the_multiplier_keeps_the_second_moment_of_the_layers_output():
    dense, model = made(family="parallel", sparsity=0.9)
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = model.stem(x)
        expected = F.relu(dense.active(dense.stem(x))).square().mean()
        scale = model.sparsify.scaling["active.branches.0.weight"].forward
        found = (scale * sum(F.relu(branch(hidden)) for branch in model.active.branches)).square().mean()
    assert float(found / expected) == pytest.approx(1.0, rel=0.2)


def test_linear_branches_together_are_drawn_as_the_layer_was():
    dense, model = made(family="parallel", branch_nonlinearity="none")
    total = sum(branch.weight for branch in model.plain.branches)
    assert float(total.detach().std()) == near(float(dense.plain.weight.std()))
    scale = model.sparsify.scaling["plain.branches.0.weight"]
    assert (scale.init_std, scale.adam_lr, scale.sgd_lr, scale.forward) == (1, 1, 1, 1)


def test_factors_have_the_default_of_their_fan_in_and_u_its_density():
    _, model = made(family="factorized", sparsity=0.75)
    u, v = model.sparsify.scaling["active.u.weight"], model.sparsify.scaling["active.v.weight"]
    density = masked_parameters(model)["active.u.weight"].density
    assert std(model, "active.u.weight") == near(DEFAULT / math.sqrt(density))
    assert std(model, "active.v.weight") == near(1 / math.sqrt(3 * model.active.v.in_features * density))
    assert (u.adam_lr, u.sgd_lr) == (near(4), near(16))
    assert (v.init_std, v.adam_lr, v.sgd_lr) == (near(1), near(1), near(1))
    assert u.untuned and v.untuned and not model.sparsify.scaling["stem.weight"].untuned


@pytest.mark.parametrize("family", ["factorized", "doped"])
def test_without_a_nonlinearity_the_output_has_the_variance_of_the_layers(family):
    dense, model = made(family=family, branch_nonlinearity="none" if family == "factorized" else "auto")
    x = torch.randn(256, WIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = (dense.plain(x) - dense.plain.bias).var()
        if family == "factorized":
            found = (model.plain.v(model.plain.u(x)) - model.plain.v.bias).var()
        else:
            x = x * math.sqrt(0.5)
            low, sparse = model.plain.v(model.plain.u(x)), model.plain.sparse(x) - model.plain.sparse.bias
            assert float(low.var() / sparse.var()) == pytest.approx(1.0, rel=0.15)
            found = (low + sparse).var()
    assert float(found / expected) == pytest.approx(1.0, rel=0.15)


def test_a_layer_that_starts_at_zero_still_does():
    def zero(model):
        model.plain.weight.zero_()
        model.plain.bias.fill_(0.25)

    for family in ("parallel", "factorized", "doped"):
        _, model = made(zero, family=family, branch_nonlinearity="none" if family != "doped" else "auto")
        root = model.plain
        x = torch.randn(5, WIDE)
        if family == "parallel":
            out = sum(branch(x) for branch in root.branches)
        else:
            out = root.v(root.u(x)) + (root.sparse(x) if family == "doped" else 0)
            assert bool(root.u.weight.any())
        assert torch.equal(out, torch.full_like(out, 0.25))


@pytest.mark.parametrize("family", ["parallel", "factorized", "doped"])
def test_standard_parameterization_multiplies_nothing(family):
    _, model = made(family=family, parameterization="sp")
    assert {
        (tensor.init_std, tensor.adam_lr, tensor.sgd_lr, tensor.forward)
        for tensor in model.sparsify.scaling.tensors
    } == {(1.0, 1.0, 1.0, 1.0)}
    assert not any(node.target == torch.ops.aten.mul.Tensor for node in model.graph.nodes)


def test_a_seed_decides_every_tensor():
    states = [made(family="doped")[1].state_dict() for _ in range(2)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
