"""The sparse convolution against the masked dense one, by itself and inside autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim

import sparsify
from sparsify import dst
from sparsify.masks import masked_parameters, parse_pattern, set_mask
from sparsify.operators import SparseConv2d, sparse_conv2d
from sparsify.operators.conv import OPERATOR


def drawn(sizes, density: float, dtype=torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(sizes, generator=generator) < density
    weight = torch.randn(sizes, generator=generator).mul_(mask).to(dtype)
    return weight.requires_grad_(), mask


def both(weight, mask, images, geometry, bias: bool):
    """Outputs and gradients of the operator and of the masked dense convolution."""
    results = []
    start = torch.randn(weight.shape[0]) if bias else None
    x, dy = torch.randn(images), None

    def dense(x, weight, mask, bias, *geometry):
        return F.conv2d(x, weight.masked_fill(~mask, 0), bias, *geometry)

    for run in (sparse_conv2d, dense):
        leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, start)]
        y = run(leaves[0], leaves[1], mask, leaves[2], *geometry)
        dy = torch.randn_like(y) if dy is None else dy
        y.backward(dy)
        results.append([y.detach(), *(leaf.grad for leaf in leaves if leaf is not None)])
    return results


# weight, images, (stride, padding, dilation): groups of 16 pixels that are full, partial, and of several
# images; odd and even sizes under a stride; kernels without a centre; padding that widens the output.
CASES = [
    ((16, 8, 3, 3), (3, 8, 8, 8), ((1, 1), (1, 1), (1, 1))),
    ((5, 7, 3, 3), (5, 7, 4, 4), ((1, 1), (1, 1), (1, 1))),
    ((20, 6, 3, 3), (2, 6, 9, 7), ((2, 2), (1, 1), (1, 1))),
    ((12, 6, 3, 3), (3, 6, 8, 10), ((2, 2), (1, 1), (1, 1))),
    ((30, 20, 1, 1), (3, 20, 7, 7), ((1, 1), (0, 0), (1, 1))),
    ((30, 20, 1, 1), (2, 20, 7, 8), ((2, 2), (0, 0), (1, 1))),
    ((4, 3, 5, 5), (2, 3, 11, 9), ((1, 1), (0, 0), (1, 1))),
    ((4, 3, 3, 3), (2, 3, 6, 6), ((1, 1), (3, 2), (1, 1))),
    ((4, 3, 2, 3), (2, 3, 9, 12), ((1, 2), (0, 1), (1, 1))),
    ((6, 4, 3, 3), (2, 4, 12, 11), ((1, 1), (2, 2), (2, 2))),
    ((6, 4, 3, 3), (2, 4, 13, 11), ((3, 2), (1, 2), (2, 1))),
    ((140, 130, 3, 3), (2, 130, 5, 5), ((1, 1), (1, 1), (1, 1))),
]


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("sizes", "images", "geometry"), CASES)
def test_matches_the_masked_dense_convolution(sizes, images, geometry, density):
    torch.manual_seed(0)
    weight, mask = drawn(sizes, density)
    sparse, dense = both(weight, mask, images, geometry, bias=density != 0.1)
    assert len(sparse) == (3 if density == 0.1 else 4)
    for got, want in zip(sparse, dense, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * max(1.0, float(want.abs().max())))
    assert not sparse[2][~mask].any()


def test_a_thousandth_in_one_weight_is_noticed():
    weight, mask = drawn((8, 6, 3, 3), 0.2)
    x = torch.randn(2, 6, 9, 9)
    out = mask.nonzero()[0].tolist()[0]
    before = sparse_conv2d(x, weight, mask, None, (1, 1), (1, 1))
    with torch.no_grad():
        weight[tuple(mask.nonzero()[0])] *= 1.001
    change = sparse_conv2d(x, weight, mask, None, (1, 1), (1, 1)) - before
    assert change[:, out].any() and not change[:, torch.arange(8) != out].any()


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride):
    weight, mask = drawn((4, 3, 3, 3), 0.4, torch.float64)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    values = weight.detach()[mask].clone().requires_grad_()

    def run(x, values, bias):
        dense = torch.zeros(4, 3, 3, 3, dtype=torch.float64).masked_scatter(mask, values)
        return sparse_conv2d(x, dense, mask, bias, (stride, stride), (1, 1))

    assert torch.autograd.gradcheck(run, (x, values, bias))


def test_opcheck():
    weight, mask = drawn((6, 4, 3, 3), 0.2)
    x, bias = torch.randn(2, 4, 6, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    torch.library.opcheck(OPERATOR.forward, (x, weight, mask, bias, [2, 2], [1, 1], [1, 1]))
    saved = (torch.randn(2, 6, 3, 3), x.detach(), weight.detach(), mask)
    torch.library.opcheck(OPERATOR.backward, (*saved, [True] * 3, [2, 2], [1, 1], [1, 1]))


def test_infinities_reach_only_outputs_that_use_them():
    """A last column that runs on into the next row's first pixel must not carry it along."""
    weight, mask = drawn((8, 6, 3, 3), 1.0)
    x = torch.randn(2, 6, 7, 7)
    x[0, :, 3, 6] = torch.inf
    y = sparse_conv2d(x, weight, mask, None, (1, 1), (1, 1))
    reached = torch.zeros(2, 7, 7, dtype=torch.bool)
    reached[0, 2:5, 5:7] = True
    assert torch.equal(~y.isfinite().all(1), reached)


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_layers_of_any_memory_format(memory):
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, padding=1)
    set_mask(layer, "weight", torch.rand(8, 6, 3, 3) < 0.3)
    x = torch.randn(3, 6, 8, 8).to(memory_format=memory)
    layer(x).square().sum().backward()
    wanted, layer.weight.grad = layer.weight.grad, None
    sparsify.accelerate(nn.ModuleList([layer]), min_sparsity=0.0)
    layer.to(memory_format=memory)
    for _ in range(2):
        layer.zero_grad()
        layer(x).square().sum().backward()
        torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-4, atol=1e-3)


def test_an_image_without_a_batch_and_a_wrong_one():
    layer = nn.Conv2d(6, 8, 3)
    set_mask(layer, "weight", torch.rand(8, 6, 3, 3) < 0.3)
    sparsify.accelerate(nn.ModuleList([layer]), min_sparsity=0.0)
    x = torch.randn(6, 5, 5)
    torch.testing.assert_close(layer(x), layer(x[None])[0], rtol=1e-4, atol=1e-5)
    for wrong in (torch.randn(1, 5, 9, 9), torch.randn(1, 6, 2, 2)):
        with pytest.raises(RuntimeError, match=r"channels|[Kk]ernel size"):
            layer(wrong)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"groups": 2}, "groups"),
        ({"padding_mode": "circular", "padding": 1}, "pad"),
        ({"padding": "same"}, "pad"),
    ],
)
def test_what_has_no_kernels_stays_dense(options, reason):
    layer = nn.Conv2d(8, 8, 3, **options)
    set_mask(layer, "weight", torch.rand(layer.weight.shape) < 0.1)
    model = nn.ModuleList([layer])
    sparsify.accelerate(model, min_sparsity=0.0)
    (decision,) = sparsify.acceleration_report(model)
    assert not decision.sparse and reason in decision.reason and type(layer) is nn.Conv2d


def test_a_compiled_model_trains_on_through_new_masks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2, padding=1))
    set_mask(model[2], "weight", torch.rand(6, 8, 3, 3) < 0.3)
    sparsify.accelerate(model, min_sparsity=0.0)
    assert type(model[2]) is SparseConv2d
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        model.zero_grad()
        model(x).square().sum().backward()
        wanted = model[2].weight.grad.clone()
        model.zero_grad()
        compiled(x).square().sum().backward()
        torch.testing.assert_close(model[2].weight.grad, wanted)
        with torch.no_grad():
            model[2].weight.copy_(torch.randn(6, 8, 3, 3))
        set_mask(model[2], "weight", torch.rand(6, 8, 3, 3) < 0.3)


def test_undone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    set_mask(model[0], "weight", torch.rand(8, 3, 3, 3) < 0.3)
    sparsify.accelerate(model, min_sparsity=0.0)
    assert type(model[0]) is SparseConv2d
    sparsify.decelerate(model)
    assert type(model[0]) is nn.Conv2d and masked_parameters(model)


STEPS = 18
METHODS = {
    "static": lambda model, optimizer: dst.Static(model, optimizer, total_steps=STEPS),
    "set": lambda model, optimizer: dst.SET(model, optimizer, total_steps=STEPS, update_every=5),
    "rigl": lambda model, optimizer: dst.RigL(model, optimizer, total_steps=STEPS, update_every=5),
    "srigl": lambda model, optimizer: dst.SRigL(model, optimizer, total_steps=STEPS, update_every=5),
    "momentum": lambda model, optimizer: dst.SparseMomentum(
        model, optimizer, total_steps=STEPS, update_every=5
    ),
    "gmp": lambda model, optimizer: dst.GMP(
        model, optimizer, total_steps=STEPS, update_every=5, target=0.1, start_fraction=0.0
    ),
}


def trained(method: str, accelerated: bool) -> nn.Module:
    """A small network after some steps, with masks on both convolutions in the middle."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 16, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    if method == "srigl":
        example = (torch.randn(2, 3, 9, 9),)
        options = {"family": "masked", "sparsity": 0.75, "pattern": "fan-in", "only": ["2", "4"]}
        model = sparsify.transform(model, example, parameterization="sp", **options)
    else:
        pattern = parse_pattern("unstructured")
        for layer in (model[2], model[4]):
            shape = layer.weight.shape
            set_mask(layer, "weight", pattern.random(shape, pattern.count(shape, 0.25)))
    if accelerated:
        sparsify.accelerate(model, min_sparsity=0.0)
        assert sum(type(module) is SparseConv2d for module in model.modules()) == 2
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    algorithm = METHODS[method](model, optimizer)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(8, 3, 9, 9, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x[:, :, 4, 4].abs().argmax(1)).backward()
        optimizer.step()
    algorithm.remove()
    return model


@pytest.mark.parametrize("method", METHODS)
def test_training_takes_the_same_course(method):
    plain, fast = trained(method, accelerated=False), trained(method, accelerated=True)
    start = masked_parameters(trained("static", accelerated=False))
    found = masked_parameters(fast)
    assert len(found) == 2
    for fqn, want in masked_parameters(plain).items():
        assert torch.equal(found[fqn].mask, want.mask)
        torch.testing.assert_close(found[fqn].param, want.param, rtol=1e-3, atol=1e-4)
        if method != "static":
            assert not torch.equal(want.mask, start[fqn].mask)
