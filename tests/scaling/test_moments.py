"""The factor on a sum of branches keeps the second moment of one of them."""

import math

import pytest
import torch
import torch.nn.functional as F

from sparsify.scaling.moments import branch_multiplier


@pytest.mark.parametrize("branches", [1, 2, 4, 10])
def test_relu_has_its_closed_form(branches):
    """E[σ²] = 1/2, (E σ)² = 1/(2π)."""
    mean = 1 / (2 * math.pi)
    expected = math.sqrt(0.5 / (branches * (0.5 - mean) + branches**2 * mean))
    assert branch_multiplier(branches, F.relu) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", [None, torch.tanh, torch.sin, lambda z: z])
def test_zero_mean_gives_the_root_of_the_number_of_branches(activation):
    assert branch_multiplier(4, activation) == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("activation", [F.relu, F.gelu, F.silu, torch.sigmoid])
def test_the_sum_has_the_second_moment_of_one_branch(activation):
    z = torch.randn(6, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = branch_multiplier(6, activation) * activation(z).sum(0)
    assert float(total.square().mean() / activation(z).square().mean()) == pytest.approx(1.0, rel=0.01)


def test_an_activation_without_a_second_moment_is_taken_for_one_of_mean_zero():
    assert branch_multiplier(4, torch.zeros_like) == pytest.approx(0.5)
