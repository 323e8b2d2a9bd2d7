"""Value and prox of the envelope against a generic convex solver; its two root finders against each other."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sparsify.dst.envelope import envelope, envelope_factors, lasso_factors
from sparsify.errors import UserError

METHODS = ("selection", "bisection")


def random_case(seed: int) -> tuple[list[Tensor], Tensor, int]:
    """Groups of different sizes with zeros and ties among them, weights, and k."""
    generator = torch.Generator().manual_seed(seed)
    m = int(torch.randint(3, 9, (1,), generator=generator))
    sizes = torch.randint(1, 4, (m,), generator=generator).tolist()
    groups = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    if seed % 3 == 1:
        groups[0] = torch.zeros_like(groups[0])
    if seed % 3 == 2:
        groups[1] = groups[1] / groups[1].norm() * groups[2].norm()
    weights = torch.ones(m).double() if seed % 2 else 0.3 + 2 * torch.rand(m, generator=generator).double()
    return groups, weights, 1 + seed % m


def norms_of(groups: list[Tensor]) -> Tensor:
    return torch.stack([group.norm() for group in groups])


def solve(problem: object) -> float:
    import cvxpy

    return float(problem.solve(solver=cvxpy.CLARABEL))  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(12))
def test_the_value_is_the_biconjugate_that_a_solver_finds(seed):
    """sup over y of ⟨w, y⟩ − S*(y), where S*(y) is half the sum of the k largest ‖y_j‖²/d_j."""
    cvxpy = pytest.importorskip("cvxpy")
    groups, weights, k = random_case(seed)
    dual = [cvxpy.Variable(group.numel()) for group in groups]
    squares = [cvxpy.sum_squares(y) / float(d) for y, d in zip(dual, weights, strict=True)]
    linear = sum(group.numpy() @ y for group, y in zip(groups, dual, strict=True))
    objective = linear - cvxpy.sum_largest(cvxpy.hstack(squares), k) / 2
    expected = solve(cvxpy.Problem(cvxpy.Maximize(objective)))
    found = [float(envelope(norms_of(groups), k, weights=weights, method=method)) for method in METHODS]
    assert found == pytest.approx([expected, expected], rel=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_the_prox_is_the_minimiser_that_a_solver_finds(seed):
    cvxpy = pytest.importorskip("cvxpy")
    groups, weights, k = random_case(seed)
    strength = 10 ** (-1.5 + 0.25 * seed)
    w = [cvxpy.Variable(group.numel()) for group in groups]
    u = cvxpy.Variable(len(groups), nonneg=True)
    bound = sum(float(d) * cvxpy.quad_over_lin(w[j], u[j]) for j, d in enumerate(weights))
    distance = sum(cvxpy.sum_squares(w[j] - groups[j].numpy()) for j in range(len(groups)))
    problem = cvxpy.Problem(cvxpy.Minimize(distance / 2 + strength * bound / 2), [u <= 1, cvxpy.sum(u) <= k])
    expected = solve(problem)
    for method in METHODS:
        norms = norms_of(groups)
        factors = envelope_factors(norms, k, strength, weights=weights, method=method)
        kept = norms * factors
        reached = float(((norms - kept) ** 2).sum() / 2)
        reached += strength * float(envelope(kept, k, weights=weights, method=method))
        assert reached == pytest.approx(expected, rel=1e-6)
        for j, group in enumerate(groups):
            solved = torch.tensor(w[j].value)
            torch.testing.assert_close(group * factors[j], solved, atol=3e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [2, 7, 300, 5000])
def test_selection_and_bisection_agree_and_the_shares_sum_to_k(m, dtype):
    generator = torch.Generator().manual_seed(m)
    norms = torch.rand(m, generator=generator, dtype=dtype) ** 6 + 1e-6
    norms[::3] = norms[0]
    weights = (0.1 + torch.rand(m, generator=generator, dtype=dtype)) ** 2
    for k in {1, m // 3 or 1, m - 1}:
        for strength in (1e-6, 0.03, 2.0, 500.0):
            one, other = (
                envelope_factors(norms, k, strength, weights=weights, method=method) for method in METHODS
            )
            torch.testing.assert_close(one, other, rtol=1e-11 if dtype == torch.float64 else 1e-6, atol=1e-12)
            if dtype == torch.float64 and strength > 1e-3:
                shrink = strength * weights
                shares = torch.where(one < 1 / (1 + shrink) - 1e-9, shrink * one / (1 - one), 1.0)
                assert float(shares.sum()) == pytest.approx(k, rel=1e-6)


def test_with_single_weights_the_value_is_half_the_squared_k_support_norm():
    """Argyriou, Foygel, Srebro: the k-support norm of (3, 2, 1) for k = 2 is √(3² + (2 + 1)²)."""
    norms = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    assert float(envelope(norms, 2)) == pytest.approx((9 + 9) / 2)
    assert float(envelope(norms, 1)) == pytest.approx(6**2 / 2)


def test_with_few_groups_it_is_weight_decay():
    norms, weights = torch.tensor([3.0, 0.0, 1.0, 0.0]), torch.tensor([1.0, 5.0, 4.0, 2.0])
    for k in (2, 3, 4, 9):
        assert float(envelope(norms, k, weights=weights)) == pytest.approx((9 + 4) / 2)
        factors = envelope_factors(norms, k, 0.5, weights=weights)
        assert factors.tolist() == pytest.approx([1 / 1.5, 0.0, 1 / 3, 0.0])


def test_it_never_leaves_fewer_than_k_groups():
    norms = torch.rand(50, generator=torch.Generator().manual_seed(0))
    for strength in (0.01, 1.0, 1e4):
        assert int((envelope_factors(norms, 8, strength) > 0).sum()) >= 8
    assert int((lasso_factors(norms, 10.0) > 0).sum()) == 0


def test_ties_are_treated_alike():
    assert envelope_factors(torch.ones(6), 2, 0.1).tolist() == pytest.approx([1 / 3 / (0.1 + 1 / 3)] * 6)


def test_rates_that_differ_make_the_prox_in_their_metric():
    """A strength for each group: no small change of the norms does better in Σ (w − v)²/(2α) + λS(w)."""
    generator = torch.Generator().manual_seed(5)
    norms = torch.rand(12, generator=generator, dtype=torch.float64)
    rates = 0.05 + torch.rand(12, generator=generator, dtype=torch.float64)

    def loss(kept: Tensor) -> float:
        return float(((kept - norms) ** 2 / rates).sum() / 2 + 0.7 * envelope(kept, 4))

    best = norms * envelope_factors(norms, 4, 0.7 * rates)
    assert (best > 0).sum() >= 4
    for _ in range(200):
        step = 0.01 * torch.randn(12, generator=generator, dtype=torch.float64)
        assert loss((best + step).clamp_min(0)) >= loss(best) - 1e-12


def test_the_lasso_is_soft_thresholding_of_norms():
    norms, weights = torch.tensor([3.0, 0.5, 0.0]), torch.tensor([1.0, 4.0, 1.0])
    assert lasso_factors(norms, 0.3, weights=weights).tolist() == pytest.approx([0.9, 0.0, 0.0])
    assert lasso_factors(norms, 0.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("call", [envelope, lambda n, k: envelope_factors(n, k, 0.1)])
@pytest.mark.parametrize(
    ("norms", "k", "message"),
    [
        (torch.ones(3), 0, "k must be at least 1"),
        (torch.tensor([1.0, math.nan]), 1, "norm of group 1 is nan"),
        (torch.tensor([math.inf, 1.0]), 1, "norm of group 0 is inf"),
        (torch.tensor([1.0, -1.0]), 1, "group 1"),
        (torch.ones(2, 2), 1, "vector of floats"),
    ],
)
def test_what_makes_no_sense_is_refused(call, norms, k, message):
    with pytest.raises(UserError, match=message):
        call(norms, k)


def test_weights_and_strengths_are_checked():
    with pytest.raises(UserError, match="one weight a group"):
        envelope(torch.ones(3), 1, weights=torch.ones(2))
    with pytest.raises(UserError, match="positive and finite"):
        envelope(torch.ones(2), 1, weights=torch.tensor([1.0, 0.0]))
    with pytest.raises(UserError, match="strength"):
        envelope_factors(torch.ones(2), 1, -1.0)
    with pytest.raises(UserError, match="method"):
        envelope(torch.ones(3), 1, method="newton")  # type: ignore[arg-type]
