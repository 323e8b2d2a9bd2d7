from __future__ import annotations

import json
import math

import pytest

from sparsify.errors import InvalidPlanError, UserError
from sparsify.scaling import Scaling, TensorFacts, scaling_table

K = 2.0
# A dense base of width 64 made twice as wide at the density that keeps its FLOPs: m_d = k, m_ρ = 1/k².
FACTS = (
    TensorFacts("stem", "input", 9, 9, 64, 128),
    TensorFacts("hidden", "hidden", 64, 128, 64, 128, density=1 / K**2),
    TensorFacts("dense", "hidden", 64, 128, 64, 128),
    TensorFacts("bias", "bias", 1, 1, 64, 128),
    TensorFacts("norm", "norm", 1, 1, 64, 128),
    TensorFacts("embedding", "embedding", 1000, 1000, 64, 128),
    TensorFacts("position", "free", 1, 1, 64, 128),
    TensorFacts("readout", "readout", 64, 128, 10, 10),
    TensorFacts("depthwise", "depthwise", 9, 9, 64, 128),
    TensorFacts("grouped", "grouped", 72, 72, 64, 128, density=0.5),
)

# variance, Adam, SGD, forward: the table "Applied to a Sparse-Wide model" with m = 1/k.
SPARSE_WIDE = {
    "stem": (1, 1, K, 1),
    "hidden": (K, K, K**2, 1),
    "dense": (1 / K, 1 / K, 1, 1),
    "bias": (1, 1, K, 1),
    "norm": (1, 1, K, 1),
    "embedding": (1, 1, K, 1),
    "position": (1, 1, K, 1),
    "readout": (1, 1, K, 1 / K),
    "depthwise": (1, 1, K, 1),
    "grouped": (2, 2, 2 * K, 1),
}


def rows(scaling: Scaling) -> dict[str, tuple[float, float, float, float]]:
    return {t.fqn: (t.init_std**2, t.adam_lr, t.sgd_lr, t.forward) for t in scaling.tensors}


def test_sparse_wide_follows_the_papers_table():
    found = rows(scaling_table(FACTS))
    assert found.keys() == SPARSE_WIDE.keys()
    for fqn, expected in SPARSE_WIDE.items():
        assert found[fqn] == pytest.approx(expected, rel=1e-12), fqn


def test_mup_ignores_density_and_sp_ignores_everything():
    mup = rows(scaling_table(FACTS, parameterization="mup"))
    assert mup["hidden"] == mup["dense"] == pytest.approx((1 / K, 1 / K, 1, 1))
    assert mup["grouped"] == pytest.approx((1, 1, K, 1))
    assert mup["readout"] == pytest.approx(SPARSE_WIDE["readout"])
    sp = rows(scaling_table(FACTS, parameterization="sp"))
    assert set(sp.values()) == {(1.0, 1.0, 1.0, 1.0)}


def test_an_unchanged_dense_model_is_not_scaled():
    facts = [TensorFacts(f.fqn, f.role, 8, 8, 8, 8) for f in FACTS]
    assert set(rows(scaling_table(facts)).values()) == {(1.0, 1.0, 1.0, 1.0)}


def test_realised_width_and_density_enter_not_nominal_ones():
    tensor = scaling_table([TensorFacts("w", "hidden", 48, 104, 48, 72, density=0.237)])["w"]
    m = 104 / 48 * 0.237
    assert (tensor.m_in, tensor.m_out, tensor.m_rho) == (104 / 48, 72 / 48, 0.237)
    assert tensor.init_std == pytest.approx(1 / math.sqrt(m))
    assert tensor.adam_lr == pytest.approx(1 / m)
    assert tensor.sgd_lr == pytest.approx(1.5 / m)


def test_a_masked_model_keeps_its_forward_pass_whatever_the_density_of_the_readout():
    facts = [TensorFacts("head", "readout", 64, 64, 10, 10, density=0.25)]
    assert rows(scaling_table(facts))["head"] == pytest.approx((4, 4, 4, 1))


def test_the_density_exponent_softens_the_correction():
    full, half = scaling_table(FACTS), scaling_table(FACTS, density_exponent=0.5)
    assert full["hidden"].m_rho == 0.25 and half["hidden"].m_rho == 0.5
    assert half["hidden"].adam_lr == pytest.approx(1.0)
    for exponent in (0.0, 1.5, -1.0):
        with pytest.raises(UserError, match="density_exponent"):
            scaling_table(FACTS, density_exponent=exponent)


def test_behind_batchnorm_only_the_initialisation_is_corrected_by_default():
    facts = [TensorFacts("conv", "hidden", 64, 128, 64, 128, 0.25, batchnorm_follows=True)]
    assert rows(scaling_table(facts))["conv"] == pytest.approx((K, 1, 1, 1))
    assert rows(scaling_table(facts, lr_behind_batchnorm=True))["conv"] == pytest.approx((K, K, K**2, 1))


C = 0.4
N = 4
BRANCH = TensorFacts("b", "branch", 64, 64, 64, 64, density=1 / N, branches=N, multiplier=C)


def test_branches_follow_the_multiplier_of_their_sum():
    assert rows(scaling_table([BRANCH]))["b"] == pytest.approx((N, 1 / C, 1 / C**2, C))
    assert rows(scaling_table([BRANCH], parameterization="mup"))["b"] == pytest.approx(
        (1, 1 / (C * N), 1 / (C**2 * N), C)
    )
    assert rows(scaling_table([BRANCH], parameterization="sp"))["b"] == (1.0, 1.0, 1.0, 1.0)


def test_linear_branches_at_equal_flops_change_nothing():
    fact = TensorFacts("b", "branch", 64, 64, 64, 64, density=1.0)
    assert rows(scaling_table([fact]))["b"] == (1.0, 1.0, 1.0, 1.0)


def test_factors_are_scaled_against_the_dense_factorization():
    """At density 1/n the rank is n times the dense one's: U has variance ×n, Adam ×n, SGD ×n²; V nothing."""
    u = TensorFacts("u", "factor", 96, 96, 32.0, 32 * N, density=1 / N, untuned=True)
    v = TensorFacts("v", "factor", 32.0, 32 * N, 48, 48, density=1 / N, untuned=True)
    found = scaling_table([u, v])
    assert rows(found)["u"] == pytest.approx((N, N, N**2, 1))
    assert rows(found)["v"] == pytest.approx((1, 1, 1, 1))
    assert found["u"].untuned and found["v"].untuned
    first_only = TensorFacts("v", "factor", 32.0, 40, 48, 48, untuned=True)
    assert rows(scaling_table([first_only]))["v"] == pytest.approx((0.8, 0.8, 0.8, 1))


def test_the_sparse_part_of_a_doped_layer_is_a_hidden_weight_on_a_scaled_path():
    sparse = TensorFacts("s", "hidden", 64, 64, 64, 64, density=1 / N, multiplier=math.sqrt(0.5))
    assert rows(scaling_table([sparse]))["s"] == pytest.approx((N, N, N, math.sqrt(0.5)))
    assert not scaling_table([sparse])["s"].untuned


def test_json_is_read_back_to_an_equal_value():
    scaling = scaling_table(FACTS, density_exponent=0.7)
    assert Scaling.from_json(json.loads(json.dumps(scaling.to_json()))) == scaling
    assert "hidden" in scaling and "other" not in scaling


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"parameterization": "ntk"},
        {"density_exponent": 2},
        {"tensors": [{"fqn": "w"}]},
        {"tensors": None},
    ],
)
def test_damaged_json_is_refused(change):
    with pytest.raises(InvalidPlanError):
        Scaling.from_json({**scaling_table(FACTS).to_json(), **change})
