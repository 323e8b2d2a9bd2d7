"""The weighted group sparse envelope function: the tightest convex bound on "at most k groups".

For disjoint groups s_1 … s_m of a vector w, weights d_j > 0 and n_j = ‖w_{s_j}‖₂ it is the biconjugate of
½ Σ d_j n_j² + (0 where at most k groups are nonzero, else ∞):

    S(w) = min ½ Σ d_j n_j² / u_j   over   0 ≤ u ≤ 1,  Σ u ≤ k

With at most k nonzero groups it is a plain weight decay. Everything here takes the norms n_j and not the
vectors: the prox multiplies each group by a factor.

Source: Refael, Arbel, Huleihel, "Learning k-Level Structured Sparse Neural Networks Using Group Envelope
Regularization" (arXiv 2212.12921).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsify.dst.envelope_root import Method, clipped_root
from sparsify.errors import UserError


def envelope(norms: Tensor, k: int, *, weights: Tensor | None = None, method: Method = "auto") -> Tensor:
    """S(w), from the norms of the groups.

    Args:
        norms: n_j = ‖w_{s_j}‖₂ [m], not negative.
        k: Wanted groups, at least 1.
        weights: d_j > 0 [m]; 1 without.
        method: How the root is found: `selection`, `bisection`, or `auto` (by device).

    Returns:
        A scalar of the norms' dtype.

    Raises:
        UserError: k is below 1, a weight is not positive, shapes differ, or a norm is negative or not finite.
    """
    n, d = _checked(norms, weights, k)
    u = _shares(d.sqrt() * n, torch.zeros_like(n), k, method)
    terms = torch.where(n > 0, d * n.square() / u.clamp_min(torch.finfo(n.dtype).tiny), 0.0)
    return (terms.sum() / 2).to(norms.dtype)


def envelope_factors(
    norms: Tensor,
    k: int,
    strength: float | Tensor,
    *,
    weights: Tensor | None = None,
    method: Method = "auto",
) -> Tensor:
    """What prox_{λS} multiplies each group by: u_j / (λd_j + u_j).

    u_j = clip(√d_j·n_j·η − λd_j, 0, 1) with η such that Σu = k; u = 1 where at most k groups are nonzero.
    That is min(1/(1 + λd_j), max(0, 1 − λ√d_j / (η n_j))). With a strength for each group it is the prox in
    the metric Σ‖w_j − v_j‖²/α_j, λ_j = α_j·λ: learning rates that differ.

    Args:
        norms: ‖v_j‖₂ [m] of the point.
        k: Wanted groups, at least 1.
        strength: λ ≥ 0, one number or [m].
        weights: d_j > 0 [m]; 1 without.
        method: How the root is found: `selection`, `bisection`, or `auto` (by device).

    Returns:
        Factors in [0, 1] [m] of the norms' dtype; 1 where λ is 0.

    Raises:
        UserError: k is below 1, λ is negative, a weight is not positive, shapes differ, or a number is not
            finite.
    """
    n, d = _checked(norms, weights, k)
    shrink = _strength(strength, n) * d
    u = _shares(d.sqrt() * n, shrink, k, method)
    return torch.where(shrink > 0, u / (shrink + u), 1.0).to(norms.dtype)


def lasso_factors(norms: Tensor, strength: float | Tensor, *, weights: Tensor | None = None) -> Tensor:
    """What the prox of λ Σ d_j ‖w_j‖ multiplies each group by: max(0, 1 − λd_j / n_j).

    Args:
        norms: ‖v_j‖₂ [m] of the point.
        strength: λ ≥ 0, one number or [m].
        weights: d_j > 0 [m]; 1 without.

    Returns:
        Factors in [0, 1] [m] of the norms' dtype.

    Raises:
        UserError: λ is negative, a weight is not positive, shapes differ, or a number is not finite.
    """
    n, d = _checked(norms, weights, 1)
    shrink = _strength(strength, n) * d
    kept = 1 - shrink / n.clamp_min(torch.finfo(n.dtype).tiny)
    return torch.where(shrink > 0, kept.clamp_min(0.0), 1.0).to(norms.dtype)


def _shares(a: Tensor, b: Tensor, k: int, method: Method) -> Tensor:
    """u_j = clip(a_j η − b_j, 0, 1) with Σu = k; where at most k of the a_j are positive, 1 there."""
    positive = a > 0
    if int(torch.count_nonzero(positive)) <= k:
        return positive.to(a.dtype)
    eta = torch.zeros((), dtype=a.dtype, device=a.device)
    eta += clipped_root(a[positive], b[positive], k, method)
    return torch.where(positive, (a * eta - b).clamp(0.0, 1.0), 0.0)


def _checked(norms: Tensor, weights: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    if norms.ndim != 1 or not norms.is_floating_point():
        raise UserError(f"norms must be a vector of floats, got {norms.dtype} of shape {tuple(norms.shape)}")
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}: with no group left there is nothing to train")
    n = norms.detach().double()
    d = torch.ones_like(n) if weights is None else weights.detach().to(n)
    if d.shape != n.shape:
        raise UserError(f"there are {n.numel()} norms and {d.numel()} weights; give one weight a group")
    if not bool((torch.isfinite(n) & (n >= 0)).all()):
        place = int(torch.nonzero(~(torch.isfinite(n) & (n >= 0)))[0])
        raise UserError(f"the norm of group {place} is {float(n[place])}: the parameters are not finite")
    if not bool((torch.isfinite(d) & (d > 0)).all()):
        raise UserError("weights of groups must be positive and finite")
    return n, d


def _strength(strength: float | Tensor, norms: Tensor) -> Tensor:
    found = torch.as_tensor(strength, dtype=norms.dtype, device=norms.device)
    if found.ndim and found.shape != norms.shape:
        raise UserError(f"there are {norms.numel()} norms and {found.numel()} strengths")
    if not bool((torch.isfinite(found) & (found >= 0)).all()):
        raise UserError("the strength λ must be a finite number of at least 0")
    return found.expand_as(norms)
