"""The operator against the masked dense product, by itself and inside autograd."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsify.masks import masked_parameters, set_mask
from sparsify.operators import topologies
from sparsify.operators.linear import OPERATOR, sparse_linear


def drawn(out: int, features: int, density: float, dtype=torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(out, features, generator=generator) < density
    weight = torch.randn(out, features, generator=generator).mul_(mask).to(dtype)
    return weight.requires_grad_(), mask


def both(weight, mask, shape, bias: bool):
    """Outputs and gradients of the operator and of the masked dense product."""
    results = []
    start = torch.randn(weight.shape[0]) if bias else None
    x = torch.randn(*shape, weight.shape[1])
    dy = torch.randn(*shape, weight.shape[0])
    for run in (sparse_linear, lambda x, w, m, b: F.linear(x, w.masked_fill(~m, 0), b)):
        leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, start)]
        y = run(leaves[0], leaves[1], mask, leaves[2])
        y.backward(dy)
        results.append([y.detach(), *(leaf.grad for leaf in leaves if leaf is not None)])
    return results


# Panels of 1 to 4 groups of 16 columns, remainders of each, several tiles and several parts of the rows.
SHAPES = [
    ((1,), 16, 16),
    ((5,), 33, 17),
    ((16,), 40, 250),
    ((2, 15), 300, 130),
    ((47,), 520, 119),
    ((64,), 64, 1030),
    ((3, 50), 777, 200),
]


@pytest.mark.parametrize("density", [0.0, 0.02, 0.2, 1.0])
@pytest.mark.parametrize(("batch", "out", "features"), SHAPES)
def test_matches_the_masked_dense_product(batch, out, features, density):
    weight, mask = drawn(out, features, density)
    sparse, dense = both(weight, mask, batch, bias=density != 0.2)
    for got, want in zip(sparse, dense, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * max(1.0, float(want.abs().max())))
    assert not sparse[2][~mask].any()


def test_a_thousandth_in_one_weight_is_noticed():
    weight, mask = drawn(64, 64, 0.1)
    x = torch.randn(32, 64)
    row, column = mask.nonzero()[0].tolist()
    before = sparse_linear(x, weight, mask)
    with torch.no_grad():
        weight[row, column] *= 1.001
    after = sparse_linear(x, weight, mask)
    expected = x[:, column] * weight[row, column].detach() * (0.001 / 1.001)
    torch.testing.assert_close((after - before)[:, row], expected, rtol=0.05, atol=1e-5)
    assert not (after - before)[:, torch.arange(64) != row].any()


def test_an_empty_batch():
    weight, mask = drawn(20, 30, 0.2)
    x = torch.empty(0, 30, requires_grad=True)
    y = sparse_linear(x, weight, mask)
    y.sum().backward()
    assert y.shape == (0, 20) and x.grad.shape == (0, 30) and not weight.grad.any()


def test_gradcheck():
    weight, mask = drawn(7, 9, 0.4, torch.float64)
    x = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)

    def run(x, values, bias):
        return sparse_linear(
            x, torch.zeros(7, 9, dtype=torch.float64).masked_scatter(mask, values), mask, bias
        )

    values = weight.detach()[mask].clone().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, values, bias))


def test_opcheck():
    weight, mask = drawn(20, 30, 0.2)
    x = torch.randn(3, 5, 30, requires_grad=True)
    bias = torch.randn(20, requires_grad=True)
    torch.library.opcheck(OPERATOR.forward, (x, weight, mask, bias))
    dy = torch.randn(15, 20)
    torch.library.opcheck(
        OPERATOR.backward, (dy, x.detach().reshape(15, 30), weight.detach(), mask, [True] * 3)
    )


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_needs_no_gradient_gets_none(frozen):
    weight, mask = drawn(20, 30, 0.2)
    leaves = {"x": torch.randn(6, 30), "weight": weight.detach(), "bias": torch.randn(20)}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != frozen)
    sparse_linear(leaves["x"], leaves["weight"], mask, leaves["bias"]).square().sum().backward()
    found = {name: leaf.grad for name, leaf in leaves.items()}
    assert found.pop(frozen) is None
    for leaf in leaves.values():
        leaf.grad = None
    F.linear(leaves["x"], leaves["weight"] * mask, leaves["bias"]).square().sum().backward()
    for name, gradient in found.items():
        expected = leaves[name].grad * mask if name == "weight" else leaves[name].grad
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-3)


def test_gradients_of_a_weight_that_is_used_twice_add_up_and_stay_inside_the_mask():
    # Once through the operator and once densely: the hook must mask the sum, whoever comes first.
    for order in (0, 1):
        layer = nn.Linear(40, 24)
        weight, mask = drawn(24, 40, 0.2, seed=order)
        with torch.no_grad():
            layer.weight.copy_(weight)
        set_mask(layer, "weight", mask)
        x = torch.randn(8, 40)
        parts = [sparse_linear(x, layer.weight, mask).sum(), F.linear(x, layer.weight).square().sum()]
        (parts[order] + parts[1 - order]).backward()
        plain = weight.detach().clone().requires_grad_()
        (F.linear(x, plain).sum() + F.linear(x, plain).square().sum()).backward()
        torch.testing.assert_close(layer.weight.grad, plain.grad * mask, rtol=1e-4, atol=1e-3)


def test_two_weights_under_one_mask_keep_their_own_values():
    first, mask = drawn(20, 30, 0.2)
    second = torch.randn(20, 30).mul_(mask).requires_grad_()
    x = torch.randn(6, 30, requires_grad=True)
    y = sparse_linear(x, first, mask)
    sparse_linear(x, second, mask)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, first.detach().sum(0).expand(6, 30), rtol=1e-4, atol=1e-4)


def test_a_weight_written_to_before_the_backward_pass_is_an_error():
    weight, mask = drawn(20, 30, 0.2)
    y = sparse_linear(torch.randn(6, 30), weight, mask)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_changed_mask_is_noticed():
    weight, mask = drawn(20, 30, 0.2)
    x = torch.randn(6, 30)
    sparse_linear(x, weight, mask)
    with torch.no_grad():
        weight.copy_(torch.randn(20, 30))
    mask.copy_(torch.rand(20, 30) < 0.5)
    torch.testing.assert_close(sparse_linear(x, weight, mask), x @ (weight * mask).t(), rtol=1e-4, atol=1e-4)


def test_plans_go_with_their_masks():
    weight, mask = drawn(20, 30, 0.2)
    sparse_linear(torch.randn(6, 30), weight, mask)
    gc.collect()
    known = len(topologies._CACHE)
    del mask
    gc.collect()
    assert len(topologies._CACHE) == known - 1


def test_infinities_reach_only_outputs_that_use_them():
    weight, mask = drawn(20, 30, 0.2)
    x = torch.randn(6, 30)
    x[:, 3] = torch.inf
    y = sparse_linear(x, weight, mask)
    assert torch.equal(y.isfinite().all(0), ~mask[:, 3])


def test_a_non_contiguous_input():
    weight, mask = drawn(20, 30, 0.2)
    x = torch.randn(30, 6).t()
    torch.testing.assert_close(
        sparse_linear(x, weight, mask), F.linear(x, weight * mask), rtol=1e-4, atol=1e-4
    )


def test_compiles():
    weight, mask = drawn(20, 30, 0.2)
    layer = nn.Linear(30, 20)
    with torch.no_grad():
        layer.weight.copy_(weight)
    set_mask(layer, "weight", mask)
    entry = masked_parameters(layer)["weight"]
    x = torch.randn(6, 30)

    def loss(x):
        return F.relu(sparse_linear(x, layer.weight, entry.mask, layer.bias)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        layer.zero_grad()
        expected = loss(x)
        expected.backward()
        wanted = layer.weight.grad
        layer.zero_grad()
        got = compiled(x)
        got.backward()
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(layer.weight.grad, wanted)
        new = torch.rand(20, 30) < 0.3
        with torch.no_grad():
            layer.weight.copy_(torch.randn(20, 30))
        set_mask(layer, "weight", new)
