from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn, optim

import sparsify
from sparsify.dst import SparseMomentum
from sparsify.errors import UserError
from sparsify.masks import gradient_mask, set_mask


class Two(nn.Module):
    """Two rows of weights whose gradients the test chooses."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 1, bias=False), nn.Linear(12, 1, bias=False)
        with torch.no_grad():
            for row in (self.a, self.b):
                row.weight.copy_(torch.arange(12.0, 0, -1)[None])
                set_mask(row, "weight", torch.arange(12)[None] < 4)

    def forward(self, x, y):
        return self.a(x).sum() + self.b(y).sum()


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    model(x[None], y[None]).backward()
    optimizer.step()


X = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0, 0, 2, 3, 0])
Y = torch.tensor([3.0, 3, 3, 3, 8, 7, 6, 5, 4, 0, 0, 0])


def test_weights_move_to_the_layer_with_the_larger_momentum():
    """Both lose ⌈.5 · 4⌉ = 2; momenta 1 and 3 share the four that went as 1 and 3."""
    model = Two()
    optimizer = optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
    algorithm = SparseMomentum(model, optimizer, total_steps=10**6, update_every=1)
    step(model, optimizer, X, Y)
    assert model.a.weight_mask[0].nonzero().flatten().tolist() == [0, 1, 10]
    assert model.b.weight_mask[0].nonzero().flatten().tolist() == [0, 1, 4, 5, 6]
    assert algorithm.counts == {"a.weight": 3, "b.weight": 5}
    assert (model.a.weight[0, 10] == 0) and (model.b.weight[0, 4:7] == 0).all()


def test_momentum_outside_the_mask_is_gathered_with_the_optimizers_decay():
    """Position 9 had its gradient early, position 10 late: with a momentum of .5 the late one is larger."""
    model = Two()
    optimizer = optim.SGD(model.parameters(), lr=1e-9, momentum=0.5)
    SparseMomentum(model, optimizer, total_steps=10**6, update_every=3, redistribute="none", window=3)
    early, late = X.clone(), X.clone()
    early[9], early[10], late[9], late[10] = 5.0, 0.0, 0.0, 2.0
    for gradient in (early, late, late):
        assert gradient_mask(model.a.weight).collector is not None
        step(model, optimizer, gradient, Y)
    # 5 / 4 against 2 + 2 / 2; the one of the first four that comes back has 1.75.
    assert model.a.weight_mask[0].nonzero().flatten().tolist() == [0, 1, 2, 10]


def test_adams_momentum_is_over_the_root_of_its_square():
    """A small but steady gradient beats a large one that turns its sign."""
    model = Two()
    optimizer = optim.Adam(model.parameters(), lr=1e-9, betas=(0.9, 0.99))
    SparseMomentum(
        model, optimizer, total_steps=10**6, update_every=4, drop_fraction=0.25, redistribute="none"
    )
    for sign in (1, -1, 1, -1):
        x = torch.zeros(12)
        x[:3], x[3], x[10], x[11] = 1.0, 0.0, 0.001, 100.0 * sign
        step(model, optimizer, x, Y)
    assert model.a.weight_mask[0].nonzero().flatten().tolist() == [0, 1, 2, 10]


def convolutional():
    """The plan masks the second convolution, used at 64 positions, and the first linear layer."""
    torch.manual_seed(0)
    first = nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(
        *first, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)
    )


def trained(redistribute, pattern="unstructured"):
    model = sparsify.transform(
        convolutional(),
        (torch.zeros(2, 2, 8, 8),),
        family="masked",
        sparsity=0.75,
        pattern=pattern,
        parameterization="sp",
    )
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    algorithm = SparseMomentum(
        model, optimizer, total_steps=60, update_every=4, redistribute=redistribute, window=2
    )
    generator, flops = torch.Generator().manual_seed(0), []
    for _ in range(60):
        optimizer.zero_grad()
        x = torch.randn(8, 2, 8, 8, generator=generator)
        nn.functional.cross_entropy(model(x), (x.mean((2, 3)) > 0).long()[:, 0]).backward()
        optimizer.step()
        flops.append(algorithm.flops)
    return model, algorithm, flops


def test_flops_are_counted_again_and_can_be_what_stays():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, algorithm, flops = trained("weights")
    planned = model.sparsify.plan.flops.sparse
    assert sum(algorithm.counts.values()) == sum(
        t.nnz for layer in model.sparsify.plan.layers for t in layer.tensors if t.masked
    )
    assert len(set(flops)) > 3, "weights moved between layers of different cost"
    model, algorithm, flops = trained("flops")
    assert max(flops) <= planned
    rates = [layer.flops / layer.nnz for layer in model.sparsify.plan.layers if layer.masked]
    assert min(flops) > planned - len(rates) * max(rates)
    assert algorithm.counts != {
        t.fqn: t.nnz for layer in model.sparsify.plan.layers for t in layer.tensors if t.masked
    }


def test_a_drift_upwards_is_said_once():
    model = sparsify.transform(
        convolutional(), (torch.zeros(2, 2, 8, 8),), family="masked", sparsity=0.75, parameterization="sp"
    )
    optimizer = optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    SparseMomentum(model, optimizer, total_steps=60, update_every=1)
    with pytest.warns(UserWarning, match=r"more than planned; redistribute='flops'") as caught:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.ones(2, 2, 8, 8)).square().sum().backward()
            # All the momentum in the convolution, whose weights are used at every position.
            for name, param in model.named_parameters():
                param.grad *= 1e3 if name == "2.weight" else 1e-3
            optimizer.step()
    assert len(caught) == 1


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: optim.SGD(p, lr=0.1),
        lambda p: optim.RMSprop(p, lr=0.1),
        lambda p: optim.Adagrad(p, lr=0.1),
        lambda p: optim.Adam(p, lr=0.1, betas=(0.0, 0.99)),
    ],
)
def test_an_optimizer_without_momentum_is_refused(optimizer):
    model = Two()
    with pytest.raises(UserError, match="sparse momentum reads the momentum of the optimizer"):
        SparseMomentum(model, optimizer(model.parameters()), total_steps=9)


def test_options_are_checked():
    model = Two()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for options, text in (
        ({"redistribute": "evenly"}, "weights, flops or none"),
        ({"redistribute": "flops"}, "transform the model first"),
        ({"window": 101}, "window must lie"),
        ({"drop_fraction": 1.5}, "drop_fraction"),
    ):
        with pytest.raises(UserError, match=text):
            SparseMomentum(model, optimizer, total_steps=9, **options)
    assert not optimizer._optimizer_step_post_hooks
