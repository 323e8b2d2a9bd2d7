"""Layers edited in the plan file: families, densities, branches, ranks, nonlinearities."""

import json

import pytest

from sparsify.errors import InvalidPlanError
from sparsify.graph.poly import Poly
from sparsify.planning import Plan, PlanOptions, fit, plan_from_facts
from tests.planning.hand_built import facts_of, group, layer, transformer

FAMILIES = ("wide", "parallel", "factorized", "doped", "auto", "masked")


def plan_of(facts=None, **options):
    return plan_from_facts(facts or transformer(), PlanOptions(**options))


def fitted(family, fqn, facts=None, options=None, /, **values):
    """The plan of a family with some values of one layer edited, and that layer."""
    data = json.loads(plan_of(facts, family=family, **(options or {})).to_json())
    next(each for each in data["layers"] if each["fqn"] == fqn).update(values)
    made = fit(Plan.from_json(json.dumps(data)), facts or transformer())
    return made, next(each for each in made.layers if each.fqn == fqn)


@pytest.mark.parametrize(
    "options",
    [
        *({"family": family, "sparsity": 0.9} for family in FAMILIES),
        *({"family": family, "sparsity": 0.37} for family in FAMILIES),
        {"family": "auto", "scope": "inner", "heads": False},
        {"family": "parallel", "branch_nonlinearity": "norm+relu"},
        {"family": "parallel", "branch_nonlinearity": "none"},
        {"family": "parallel", "sparsity": 0.5, "width": 3.0},
        {"family": "factorized", "sparse_factors": "first"},
        {"family": "factorized", "sparsity": None, "width": 3.3},
        {"family": "wide", "multiple": 16},
    ],
    ids=str,
)
def test_an_unedited_plan_comes_back_equal(options):
    made = plan_of(**options)
    assert fit(Plan.from_json(made.to_json()), transformer()) == made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_is_kept_dense_by_its_family(family):
    made, edited = fitted(family, "fc1", family="dense")
    assert not edited.masked and edited.density == 1
    assert not any(tensor.masked for tensor in edited.tensors)
    again = fit(made, transformer())
    assert again == made


@pytest.mark.parametrize("family", ["parallel", "factorized", "doped"])
def test_a_wide_layer_changes_family_at_its_planned_shape_and_equal_flops(family):
    before = next(each for each in plan_of().layers if each.fqn == "fc1")
    made, edited = fitted("wide", "fc1", family=family)
    assert edited.family == family and edited.shape == before.shape
    assert edited.nnz == before.shape[0] * before.shape[1]
    count = edited.branches if family == "parallel" else edited.rank
    assert count > 1 and edited.reason == "edited in the plan"
    assert edited.nonlinearity == ("none" if family == "doped" else "follows")
    assert fit(made, transformer()) == made


@pytest.mark.parametrize("family", ["parallel", "factorized", "doped"])
def test_a_dense_layer_joins_at_the_sparsity_of_the_plan(family):
    values = {"nonlinearity": "relu"} if family == "parallel" else {}
    made, edited = fitted("doped", "head", family=family, **values)
    assert edited.family == family and edited.nnz == edited.shape[0] * edited.shape[1]
    assert edited.density == pytest.approx(0.25, abs=0.02)
    assert made.flops.ratio == 1


def test_a_change_of_family_takes_the_count_given_with_it():
    _, branches = fitted("doped", "fc1", family="parallel", branches=6)
    assert branches.branches == 6 and branches.nnz == 64 * 256
    _, rank = fitted("parallel", "fc1", family="doped", rank=10)
    assert rank.rank == 10 and rank.nnz == 64 * 256
    _, both = fitted("parallel", "fc1", family="factorized", rank=100, density=0.1)
    assert both.rank == 100 and both.nnz == round(0.1 * 100 * 320)


def test_a_rank_of_one_family_is_not_taken_over_by_another():
    _, edited = fitted("factorized", "fc1", family="doped")
    assert edited.rank == next(each for each in plan_of(family="doped").layers if each.fqn == "fc1").rank


def test_edited_counts_and_densities_are_taken_as_they_are():
    made, edited = fitted("parallel", "fc1", branches=8)
    assert edited.branches == 8 and edited.density == 0.25 and made.flops.ratio > 1
    _, edited = fitted("parallel", "fc1", density=0.1)
    assert edited.branches == 4 and edited.density == pytest.approx(0.1, abs=1e-4)
    _, edited = fitted("doped", "attn.q", density=0.1)
    assert edited.nnz == round(0.1 * 4096) + edited.rank * 128
    _, edited = fitted("parallel", "fc1", nonlinearity="norm+relu")
    assert edited.nonlinearity == "norm+relu"


def test_an_edited_width_reaches_a_replaced_layer():
    data = json.loads(plan_of(family="parallel").to_json())
    data["groups"][2]["width"] = 512
    edited = fit(Plan.from_json(data), transformer()).layers[5]
    assert edited.fqn == "fc1" and edited.shape == (512, 64)
    assert [tensor.nnz for tensor in edited.tensors] == [512 * 64 // 4] * 4


@pytest.mark.parametrize(
    ("fqn", "values", "named"),
    [
        ("fc1", {"family": "thin"}, r"fc1\)\.family.*thin"),
        ("embed", {"family": "doped"}, r"embed\)\.family.*embedding"),
        ("fc2", {"family": "parallel"}, r"fc2\)\.nonlinearity.*one matrix"),
        ("fc1", {"branches": 0}, r"fc1\)\.branches"),
        ("fc1", {"rank": -1}, r"fc1\)\.rank"),
        ("fc1", {"family": "parallel", "nonlinearity": "swish"}, r"fc1\)\.nonlinearity.*swish"),
        ("fc2", {"family": "factorized", "nonlinearity": "follows"}, r"fc2\)\.nonlinearity"),
        ("fc1", {"family": "doped", "rank": 500}, r"fc1\)\.rank"),
        ("fc1", {"family": "parallel", "branches": 10**9}, r"fc1\)\.branches"),
    ],
)
def test_edits_that_cannot_be_name_the_key_and_the_layer(fqn, values, named):
    with pytest.raises(InvalidPlanError, match=named):
        fitted("wide", fqn, None, {"scope": "inner"}, **values)


def test_a_rank_must_fit_the_groups():
    c = Poly.symbol("c")
    facts = facts_of([group("c", 64)], [layer("conv", (c, 16, 3, 3), "grouped", "conv2d", groups=4)])
    _, edited = fitted("doped", "conv", facts, rank=8)
    assert edited.rank == 8
    with pytest.raises(InvalidPlanError, match=r"conv\)\.rank.*4 groups"):
        fitted("doped", "conv", facts, rank=6)


def test_layers_that_share_a_weight_cannot_be_replaced():
    a, b = Poly.symbol("a"), Poly.symbol("b")
    layers = [layer("one", (a, b)), layer("two", (a, b)), layer("fc", (b, a))]
    facts = facts_of([group("a", 64), group("b", 64)], layers)
    ties = [("one.weight", "two.weight")]
    data = json.loads(plan_from_facts(facts, PlanOptions(), ties=ties).to_json())
    data["layers"][0]["family"] = "doped"
    with pytest.raises(InvalidPlanError, match="one, two share one weight"):
        fit(Plan.from_json(data), facts, ties=ties)
    data["layers"][1]["family"] = "doped"
    with pytest.raises(InvalidPlanError, match=r"one\)\.family.*weight of its own"):
        fit(Plan.from_json(data), facts, ties=ties)


def test_a_normalisation_that_serves_two_layers_cannot_move():
    a = Poly.symbol("a")
    layers = [layer(name, (a, a), follows="batch_norm", norm="bn") for name in ("one", "two")]
    with pytest.raises(InvalidPlanError, match=r"one\)\.nonlinearity.*bn.*two"):
        fitted("doped", "one", facts_of([group("a", 64)], layers), family="parallel")
