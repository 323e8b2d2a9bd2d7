from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.errors import SparsifyError, UserError
from sparsify.masks import count, magnitude_mask, random_mask, topk_mask


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, float("-inf"), float("inf")]), min_size=1), st.data())
@settings(max_examples=60, deadline=None)
def test_topk_is_exact_under_ties_and_keeps_the_lowest_index(values, data):
    k = data.draw(st.integers(0, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    mask = topk_mask(torch.tensor(values), k)
    assert mask.nonzero().flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_topk_takes_any_dtype_and_shape(dtype):
    scores = torch.arange(24).reshape(2, 3, 4).to(dtype)
    mask = topk_mask(scores, 5)
    assert mask.shape == scores.shape
    assert mask.flatten().nonzero().flatten().tolist() == [19, 20, 21, 22, 23]


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 2.0]), min_size=1), st.data())
@settings(max_examples=60, deadline=None)
def test_magnitude_mask_is_topk_of_the_magnitudes_and_leaves_the_weight_alone(values, data):
    k = data.draw(st.integers(0, len(values)))
    weight = torch.tensor(values)
    assert torch.equal(magnitude_mask(weight, k), topk_mask(weight.abs(), k))
    assert weight.tolist() == values
    assert torch.equal(magnitude_mask(weight.double(), k), magnitude_mask(weight, k))


def test_topk_refuses_nan_and_impossible_counts():
    with pytest.raises(SparsifyError, match="NaN"):
        topk_mask(torch.tensor([1.0, float("nan"), 2.0]), 1)
    with pytest.raises(SparsifyError, match="cannot keep 4 of 3"):
        topk_mask(torch.zeros(3), 4)
    with pytest.raises(SparsifyError, match="NaN"):
        magnitude_mask(torch.tensor([1.0, float("nan"), 2.0]), 1)


@given(st.integers(1, 300), st.data(), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_random_mask_has_exactly_k_entries(numel, data, seed):
    k = data.draw(st.integers(0, numel))
    mask = random_mask((numel,), k, torch.Generator().manual_seed(seed))
    assert int(mask.sum()) == k
    assert torch.equal(mask, random_mask((numel,), k, torch.Generator().manual_seed(seed)))


def test_random_mask_is_uniform_over_positions_and_pairs():
    """Every entry is active with probability k/n, every pair with k(k-1)/(n(n-1)), within 5 sigma."""
    generator, draws, n, k = torch.Generator().manual_seed(1), 6000, 8, 3
    masks = torch.stack([random_mask((n,), k, generator) for _ in range(draws)]).double()
    together = masks.T @ masks / draws
    single, pair = k / n, k * (k - 1) / (n * (n - 1))
    expected = torch.full((n, n), pair, dtype=torch.float64).fill_diagonal_(single)
    sigma = (expected * (1 - expected) / draws).sqrt()
    assert ((together - expected).abs() < 5 * sigma).all()


def test_random_mask_takes_linear_time_at_large_sizes():
    started = time.perf_counter()
    mask = random_mask((4000, 5000), 5_000_001, torch.Generator().manual_seed(0))
    assert int(mask.sum()) == 5_000_001
    assert time.perf_counter() - started < 5.0, "20M entries took longer than a sort would"


def test_count_rounds_half_to_even_and_keeps_at_least_one():
    assert [count(10, 0.25), count(10, 0.35), count(10, 0.01), count(10, 1.0)] == [2, 4, 1, 10]
    for density in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="density"):
            count(10, density)
