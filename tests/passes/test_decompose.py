"""Splits of a weight: exact counts, exact where a split exists, and never worse than the best of one kind."""

from __future__ import annotations

import math

import pytest
import torch

from sparsify.masks.exact import topk_mask
from sparsify.passes.connect import drawn_std, spread
from sparsify.passes.decompose import doped, factorized, low_rank, partition


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _weight(outputs: int, inputs: int) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=_generator())


def _error(w: torch.Tensor, made: torch.Tensor) -> float:
    return float((w - made).norm() / w.norm())


def test_branches_cover_every_weight_once():
    w = _weight(12, 17)
    masks = partition(w, [68, 68, 68], _generator())
    assert torch.equal(sum(mask.int() for mask in masks), torch.ones(12, 17, dtype=torch.int32))
    assert [int(mask.sum()) for mask in masks] == [68, 68, 68]


def test_branches_with_less_room_keep_the_largest_weights():
    w = _weight(12, 17)
    masks = partition(w, [50, 51], _generator())
    assert torch.equal(masks[0] | masks[1], topk_mask(w.abs(), 101))
    assert not (masks[0] & masks[1]).any()


def test_branches_with_more_room_stay_exact_in_number():
    w = _weight(4, 5)
    masks = partition(w, [15, 15], _generator())
    assert [int(mask.sum()) for mask in masks] == [15, 15]
    assert (masks[0] | masks[1]).all()


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (9, 9)])
def test_low_rank_is_the_best_of_its_rank(shape):
    w = _weight(*shape)
    u, v = low_rank(w, 4)
    left, values, right = torch.linalg.svd(w)
    best = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
    assert torch.allclose(v @ u, best, atol=1e-4)
    assert torch.allclose(u.norm(dim=1), v.norm(dim=0), rtol=1e-3)


def test_a_rank_beyond_the_matrix_gives_the_matrix():
    w = _weight(6, 9)
    u, v = low_rank(w, 11)
    assert u.shape == (11, 9)
    assert v.shape == (6, 11)
    assert torch.allclose(v @ u, w, atol=1e-4)


def test_doped_finds_low_rank_plus_sparse():
    low = _weight(32, 5) @ torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    spikes = torch.zeros(32 * 48)
    spikes[torch.randperm(spikes.numel(), generator=_generator())[:40]] = 30.0
    w = low + spikes.reshape(32, 48)
    factors, sparse, mask = doped(w, 5, 40)
    assert int(mask.sum()) == 40
    assert not (sparse[~mask]).any()
    assert _error(w, factors.v @ factors.u + sparse) < 0.01


def test_doped_is_closer_than_either_part_alone():
    w = _weight(48, 48)
    rank = 12
    nnz = w.numel() - rank * 96
    factors, sparse, _ = doped(w, rank, nnz)
    both = _error(w, factors.v @ factors.u + sparse)
    u, v = low_rank(w, rank)
    assert both < _error(w, v @ u)
    assert both < _error(w, w * topk_mask(w.abs(), nnz))


@pytest.mark.parametrize("density", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("shape", [(64, 256), (32, 32), (16, 144)])
@pytest.mark.parametrize("share", [0.0, 0.05])
def test_factors_have_their_exact_counts(shape, density, share):
    outputs, inputs = shape
    w = _weight(*shape)
    rank = math.ceil(w.numel() / ((inputs + outputs) * density))
    nnz_u = round(rank * inputs * density)
    nnz = (nnz_u, min(outputs * rank, w.numel() - nnz_u))
    made = factorized(w, rank, nnz, share=share, generator=_generator())
    assert (int(made.u_mask.sum()), int(made.v_mask.sum())) == nnz
    assert not made.u[~made.u_mask].any()
    assert not made.v[~made.v_mask].any()
    assert _error(w, made.v @ made.u) < 0.5


def test_factors_lose_only_as_many_weights_as_there_are_units_to_pass():
    w = _weight(64, 256)
    rank = math.ceil(w.numel() / (320 * 0.1))
    nnz_u = round(rank * 256 * 0.1)
    made = factorized(w, rank, (nnz_u, w.numel() - nnz_u), share=0.0, generator=_generator())
    lost = int((((made.v @ made.u) - w).abs() > 1e-6).sum())
    assert rank >= 320
    assert lost <= 320
    smallest = topk_mask(-w.abs(), 320)
    assert _error(w, made.v @ made.u) <= float((w * smallest).norm() / w.norm()) + 1e-6


def test_free_inner_units_get_inputs_and_outputs_that_change_nothing():
    w = _weight(64, 256)
    rank = 512
    made = factorized(w, rank, (13107, 3277), share=0.1, generator=_generator())
    assert made.free == rank - 320
    assert made.u_mask[-made.free :].any(1).all()
    assert made.v_mask[:, -made.free :].any(0).all()
    assert not made.v[:, -made.free :].any()


def test_spread_is_even_and_exact():
    mask = spread(7, 40, 100, _generator())
    assert int(mask.sum()) == 100
    assert set(mask.sum(1).tolist()) == {14, 15}


def test_spread_chooses_the_same_units_on_both_sides():
    few, fewer = spread(50, 9, 20, _generator()), spread(50, 300, 20, torch.Generator().manual_seed(5))
    assert torch.equal(few.any(1), fewer.any(1))


def test_fewer_inputs_have_larger_weights():
    assert drawn_std(0.1, 400, 4) == pytest.approx(1.0)
