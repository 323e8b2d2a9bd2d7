"""Gradients whose memory is used again: what anybody still holds stays, and nothing stale comes through."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify
from sparsify.masks import set_mask

ROWS = 12


@pytest.fixture
def layer():
    torch.manual_seed(0)
    layer = nn.Linear(40, 70)
    set_mask(layer, "weight", torch.rand(70, 40) < 0.2)
    sparsify.accelerate(nn.ModuleList([layer]), min_sparsity=0.0)
    return layer


def step(layer, rows: int = ROWS):
    """One backward pass; returns the gradient that it must add."""
    x, dy = torch.randn(rows, 40), torch.randn(rows, 70)
    layer(x).backward(dy)
    return (dy.t() @ x) * layer.weight_mask


def check(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not got[want == 0].any()


def test_the_memory_of_the_step_before_is_used_again(layer):
    step(layer)
    before = layer.weight.grad.data_ptr()
    for _ in range(3):
        layer.zero_grad()
        want = step(layer)
        assert layer.weight.grad.data_ptr() == before
        check(layer.weight.grad, want)


@pytest.mark.parametrize(
    "write",
    [
        lambda grad: grad.fill_(7.0),
        lambda grad: grad.mul_(torch.nan),
        lambda grad: grad.view(-1).add_(1.0),
        lambda grad: torch._foreach_add_([grad], 1.0),
    ],
    ids=["fill", "nan", "view", "foreach"],
)
def test_what_was_written_to_a_gradient_does_not_come_back(layer, write):
    step(layer)
    write(layer.weight.grad)
    layer.zero_grad()
    want = step(layer)
    check(layer.weight.grad, want)


@pytest.mark.parametrize("held", [lambda grad: grad, lambda grad: grad.view(-1)[3:], lambda grad: grad.data])
def test_a_gradient_that_somebody_holds_stays(layer, held):
    step(layer)
    kept = held(layer.weight.grad)
    copy = kept.clone()
    for _ in range(2):
        layer.zero_grad()
        want = step(layer)
        check(layer.weight.grad, want)
    assert torch.equal(kept, copy)


def test_gradients_of_several_steps_add_up(layer):
    want = step(layer) + step(layer) + step(layer)
    check(layer.weight.grad, want)
    layer.zero_grad(set_to_none=False)
    want = step(layer) + step(layer)
    check(layer.weight.grad, want)
    layer.zero_grad()
    want = step(layer)
    check(layer.weight.grad, want)


def test_positions_of_an_older_topology_are_zero(layer):
    step(layer)
    layer.zero_grad()
    set_mask(layer, "weight", torch.rand(70, 40) < 0.2)
    want = step(layer)
    check(layer.weight.grad, want)


def test_two_layers_in_one_pass_have_gradients_of_their_own(layer):
    other = nn.Linear(40, 70)
    set_mask(other, "weight", layer.weight_mask)
    sparsify.accelerate(nn.ModuleList([other]), min_sparsity=0.0)
    for _ in range(2):
        layer.zero_grad()
        other.zero_grad()
        x = torch.randn(ROWS, 40)
        (layer(x).sum() - 2 * other(x).sum()).backward()
        torch.testing.assert_close(other.weight.grad, -2 * layer.weight.grad)
        assert layer.weight.grad.count_nonzero() == layer.weight_mask.count_nonzero()
