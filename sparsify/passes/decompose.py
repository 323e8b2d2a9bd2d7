"""Splits of one dense weight matrix into what a drop-in layer holds; pure functions of W.

All take W as a matrix of shape [outputs, inputs] (a kernel's places count as inputs). Parallel:
W = Σ_j W_j with disjoint masks, exactly. Doped: W ≈ V·U + S, a truncated singular value decomposition and the
largest residuals in turn. Factorized: W ≈ V·U with sparse U and V. Where the rank allows it, some inner units
pass an input through (a one in U, that input's weights in V) and others pass an output through (a one in V,
that output's weights in U), so that nearly every weight finds a place; else by singular vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from sparsify.masks.exact import random_mask, topk_mask
from sparsify.passes.connect import drawn_std, spread

Choose = Callable[[Tensor, int], Tensor]
"""From scores and a count to a mask."""

_ROUNDS, _REFINEMENTS = 6, 12
_EXACT_SIDE, _TWO_STARTS = 1024, 512
_GOOD_ENOUGH = 0.3


@dataclass(frozen=True)
class Factors:
    """Two factors with V·U ≈ W.

    Attributes:
        u: [rank, inputs].
        v: [outputs, rank].
        u_mask: Active positions of `u`.
        v_mask: Active positions of `v`.
        free: Inner units that hold nothing of W.
    """

    u: Tensor
    v: Tensor
    u_mask: Tensor
    v_mask: Tensor
    free: int = 0


def partition(w: Tensor, counts: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Masks of parallel branches: every weight is active in one branch.

    Where the counts sum to less than `w` has, the largest weights are kept; where they sum to more, the rest
    are active positions outside the branch's own weights.

    Args:
        w: Any shape.
        counts: Active weights of each branch.
        generator: Source of randomness, on the device of `w`.

    Returns:
        One bool tensor of the shape of `w` for each branch; they are disjoint where the counts allow it.
    """
    kept = topk_mask(w.abs(), min(sum(counts), w.numel())).reshape(-1).nonzero().reshape(-1)
    order = kept[torch.randperm(kept.numel(), generator=generator, device=w.device)]
    surplus = sum(counts) - kept.numel()
    extra = [surplus // len(counts) + (index < surplus % len(counts)) for index in range(len(counts))]
    masks, start = [], 0
    for count, more in zip(counts, extra, strict=True):
        mask = torch.zeros(w.numel(), dtype=torch.bool, device=w.device)
        mask[order[start : start + count - more]] = True
        start += count - more
        if more:
            rest = (~mask).nonzero().reshape(-1)
            mask[rest[random_mask(rest.shape, more, generator)]] = True
        masks.append(mask.reshape(w.shape))
    return masks


def low_rank(w: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a rank: U = Σ^½·Rᵀ and V = L·Σ^½ of the truncated decomposition L·Σ·Rᵀ.

    By the eigenvectors of W·Wᵀ or WᵀW, whichever is smaller. Rows of U beyond the rank of `w` are zero.

    Args:
        w: [outputs, inputs].
        rank: At least 1.
    """
    wide = w.shape[0] <= w.shape[1]
    side = w if wide else w.T
    precise = side.double() if side.shape[0] <= _EXACT_SIDE else side.float()
    values, vectors = torch.linalg.eigh(precise @ precise.T)
    taken = min(rank, side.shape[0])
    values, vectors = values[-taken:].flip(0).clamp(min=0), vectors[:, -taken:].flip(1)
    root = values.sqrt().sqrt()
    inverse = torch.where(root > root.max() * 1e-7, 1 / root.clamp(min=torch.finfo(root.dtype).tiny), 0.0)
    left, right = vectors * root, (vectors * inverse).T @ precise
    u, v = (right, left) if wide else (left.T, right.T)
    fill = rank - taken
    u = torch.cat([u, u.new_zeros(fill, u.shape[1])]) if fill else u
    v = torch.cat([v, v.new_zeros(v.shape[0], fill)], dim=1) if fill else v
    return u.to(w.dtype), v.to(w.dtype)


def doped(w: Tensor, rank: int, nnz: int, choose: Choose = topk_mask) -> tuple[Factors, Tensor, Tensor]:
    """Alternates the best V·U of W − S and the largest residuals S of W − V·U.

    From S = 0, and for matrices of moderate size also from the largest weights, where singular vectors would
    be spent on outliers.

    Args:
        w: [outputs, inputs].
        rank: Inner width.
        nnz: Active positions of the sparse part.
        choose: Masks of the sparse part from scores and a count.

    Returns:
        The dense factors, the sparse part and its mask; of all rounds those with the smallest ‖W − V·U − S‖.
    """
    rounds = _alternations(w, torch.zeros_like(w), rank, nnz, choose)
    if min(w.shape) <= _TWO_STARTS:
        rounds = chain(rounds, _alternations(w, w * choose(w.abs(), nnz), rank, nnz, choose))
    _, u, v, sparse, mask = min(rounds, key=lambda found: found[0])
    full = (torch.ones_like(u, dtype=torch.bool), torch.ones_like(v, dtype=torch.bool))
    return Factors(u, v, *full), sparse, mask


def _alternations(
    w: Tensor, sparse: Tensor, rank: int, nnz: int, choose: Choose
) -> Iterator[tuple[float, Tensor, Tensor, Tensor, Tensor]]:
    """Rounds with their errors, until one gains less than a hundredth."""
    last = float("inf")
    for _ in range(_ROUNDS):
        u, v = low_rank(w - sparse, rank)
        residual = w - v @ u
        mask = choose(residual.abs(), nnz)
        sparse = residual * mask
        error = float((residual - sparse).norm())
        yield error, u, v, sparse, mask
        if error >= 0.99 * last:
            return
        last = error


def factorized(
    w: Tensor,
    rank: int,
    nnz: tuple[int, int],
    *,
    share: float,
    generator: torch.Generator,
    choose: tuple[Choose, Choose] | None = None,
) -> Factors:
    """Sparse U and V with V·U ≈ W, by whichever way has the smaller error.

    With masks of a pattern it is by singular vectors.

    Args:
        w: [outputs, inputs].
        rank: Inner width.
        nnz: Active positions of U and of V.
        share: Share of them that goes to inner units which hold nothing of W, where there are any.
        generator: Source of randomness, on the device of `w`.
        choose: Masks of U and of V from scores and a count, where they have a pattern.
    """
    if choose is not None:
        return _singular(w, rank, nnz, choose, generator)
    passed = _passing(w, rank, nnz, share, generator)
    if passed is not None and _error(w, passed) <= _GOOD_ENOUGH:
        return passed
    turned = _singular(w, rank, nnz, (topk_mask, topk_mask), generator)
    return turned if passed is None or _error(w, turned) < _error(w, passed) else passed


def _error(w: Tensor, factors: Factors) -> float:
    return float((w - factors.v @ factors.u).norm() / w.norm().clamp(min=torch.finfo(w.dtype).tiny))


def _passing(
    w: Tensor, rank: int, nnz: tuple[int, int], share: float, generator: torch.Generator
) -> Factors | None:
    """Inner units 0 … a−1 pass inputs, a … a+b−1 outputs, the rest are free; None where it does not fit."""
    outputs, inputs = w.shape
    if rank <= min(outputs, inputs):
        return None
    b = min(outputs, rank) if rank > outputs else rank - inputs
    a = min(inputs, rank - b)
    free = rank - a - b
    reserved = [round(share * count) if free else 0 for count in nnz]
    room_u, room_v = nnz[0] - a - reserved[0], nnz[1] - b - reserved[1]
    if room_u < 0 or room_v < 0:
        return None
    columns = w.square().sum(0).topk(a).indices.sort().values
    rows = w.square().sum(1).topk(b).indices.sort().values
    u, v = w.new_zeros(rank, inputs), w.new_zeros(outputs, rank)
    u_mask, v_mask = torch.zeros_like(u, dtype=torch.bool), torch.zeros_like(v, dtype=torch.bool)
    inside = topk_mask(w[:, columns].abs(), min(room_v, outputs * a))
    v[:, :a], v_mask[:, :a] = w[:, columns] * inside, inside
    rest = w.clone()
    rest[:, columns] = w[:, columns] * ~inside
    beyond = topk_mask(rest[rows].abs(), min(room_u, inputs * b))
    u[a : a + b], u_mask[a : a + b] = rest[rows] * beyond, beyond
    units, passing = torch.arange(a, device=w.device), torch.arange(a, a + b, device=w.device)
    u[units, columns], u_mask[units, columns] = 1.0, True
    v[rows, passing], v_mask[rows, passing] = 1.0, True
    made = Factors(u, v, u_mask, v_mask, free)
    _fill_up(made, nnz, float(w.std()), generator)
    return made


def _fill_up(factors: Factors, nnz: tuple[int, int], std: float, generator: torch.Generator) -> None:
    """Gives what is left of the counts to the free units: drawn inputs, outputs of value zero."""
    free = factors.free
    left = nnz[0] - int(factors.u_mask.count_nonzero()), nnz[1] - int(factors.v_mask.count_nonzero())
    if free and left[0]:
        count = min(left[0], free * factors.u.shape[1])
        block = spread(free, factors.u.shape[1], count, generator)
        factors.u_mask[-free:] = block
        values = torch.zeros_like(factors.u[-free:])
        values.normal_(0.0, drawn_std(std, factors.u.shape[1], count / free), generator=generator)
        factors.u[-free:] = values * block
    if free and left[1]:
        count = min(left[1], free * factors.v.shape[0])
        factors.v_mask[:, -free:] = spread(free, factors.v.shape[0], count, generator).T
    for mask, count in ((factors.u_mask, nnz[0]), (factors.v_mask, nnz[1])):
        missing = count - int(mask.count_nonzero())
        if missing:
            rest = (~mask).reshape(-1).nonzero().reshape(-1)
            mask.view(-1)[rest[random_mask(rest.shape, missing, generator)]] = True


def _singular(
    w: Tensor, rank: int, nnz: tuple[int, int], choose: tuple[Choose, Choose], generator: torch.Generator
) -> Factors:
    """The largest entries of the truncated singular vectors, refined inside their masks.

    Inner units beyond the rank of `w` get drawn inputs and outputs of value zero.
    """
    u, v = low_rank(w, rank)
    u_mask, v_mask = choose[0](u.abs(), nnz[0]), choose[1](v.abs(), nnz[1])
    u, v = u * u_mask, v * v_mask
    for _ in range(_REFINEMENTS):
        v = v - ((v @ u - w) @ u.T) * v_mask / _curvature(u.T)
        u = u - (v.T @ (v @ u - w)) * u_mask / _curvature(v)
    empty = ((u == 0).all(1) & (v == 0).all(0))[:, None] & u_mask
    drawn = torch.empty_like(u).normal_(0.0, float(w.std()), generator=generator)
    return Factors(torch.where(empty, drawn, u), v, u_mask, v_mask)


def _curvature(factor: Tensor) -> Tensor:
    """An upper bound of ‖F‖², so that a gradient step of 1/‖F‖² never overshoots: ‖F‖₁·‖F‖_∞."""
    columns, rows = factor.abs().sum(0).max(), factor.abs().sum(1).max()
    return (columns * rows).clamp(min=torch.finfo(factor.dtype).tiny)
