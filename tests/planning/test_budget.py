"""The iso-FLOP solves, on facts written by hand."""

import math

import pytest

from sparsify.errors import BudgetError, UserError
from sparsify.graph.poly import Poly
from sparsify.planning import PlanOptions, plan_from_facts
from sparsify.planning.distribution import spread
from tests.planning.hand_built import facts_of, group, layer, mlp, transformer


def plan_of(facts, **options):
    options.setdefault("sparsity", None)
    return plan_from_facts(facts, PlanOptions(**options))


@pytest.mark.parametrize(
    "facts", [mlp(), transformer(), transformer(768, 48, 3072)], ids=["mlp", "small", "large"]
)
@pytest.mark.parametrize("scope", ["all", "inner"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.75, 0.9, 0.98])
def test_whole_model_keeps_its_flops_and_the_density_asked_for(facts, scope, sparsity):
    made = plan_of(facts, sparsity=sparsity, scope=scope)
    assert made.flops.ratio == pytest.approx(1, abs=1e-3)
    assert made.density == pytest.approx(1 - sparsity, abs=0.35 * min(sparsity, 1 - sparsity))
    assert any(each.width > 1 for each in made.layers)


def test_flops_add_up_over_layers_and_products():
    facts = transformer()
    made = plan_of(facts, sparsity=0.75)
    other = facts.other_flops.evaluate(made.widths)
    assert sum(each.flops for each in made.layers) + other == pytest.approx(
        made.flops.sparse, abs=len(made.layers)
    )


def test_square_layers_widen_by_the_papers_factor():
    b = layer("b", (Poly.symbol("x"), Poly.symbol("y")))
    a = layer("a", (Poly.symbol("y"), Poly.symbol("x")))
    made = plan_of(facts_of([group("x", 512), group("y", 512)], [a, b]), sparsity=0.75)
    assert made.widths == {"x": 1024, "y": 1024}
    assert [each.density for each in made.layers] == [0.25, 0.25]


def test_widths_are_multiples_of_eight_channels_and_heads_stay_whole():
    made = plan_of(transformer(64, 4, 256), sparsity=0.5)
    grown = made.widths
    assert grown["d"] % 8 == grown["f"] % 8 == 0
    assert all(each.shape[0] == 16 * grown["h"] for each in made.layers if each.fqn in ("attn.q", "attn.k"))


def test_narrow_groups_are_rounded_finely_enough_to_stay_near_the_sparsity():
    made = plan_of(mlp(hidden=10), sparsity=0.5)
    assert made.density == pytest.approx(0.5, abs=0.125)
    assert made.widths["b"] > 10


def test_a_width_alone_solves_the_density():
    made = plan_of(transformer(), width=1.5, scope="inner")
    assert made.widths == {"d": 64, "h": 6, "f": 384, "vocab": 100}
    assert made.flops.ratio == pytest.approx(1, abs=1e-3)


def test_both_are_taken_as_they_are():
    made = plan_of(mlp(), width=2.0, sparsity=0.5)
    assert made.widths["a"] == made.widths["b"] == 128
    assert next(each for each in made.layers if each.fqn == "fc").density == 0.5
    assert made.flops.ratio > 1.5


def test_too_wide_names_the_largest_width_and_that_one_works():
    with pytest.raises(BudgetError, match="largest feasible width") as caught:
        plan_of(transformer(), width=8.0)
    largest = caught.value.largest_width
    assert largest is not None and 1 < largest < 8
    assert plan_of(transformer(), width=largest).flops.ratio == pytest.approx(1, abs=1e-3)
    with pytest.raises(BudgetError):
        plan_of(transformer(), width=largest + 0.1)


@pytest.mark.parametrize("width", [0.5, 0.0, -1.0])
def test_a_width_below_one_would_need_a_density_above_one(width):
    with pytest.raises(BudgetError, match="density above 1"):
        plan_of(mlp(), width=width)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, math.nan])
def test_a_sparsity_out_of_range_is_a_user_error(sparsity):
    with pytest.raises(UserError, match="sparsity"):
        plan_of(mlp(), sparsity=sparsity)


def test_nothing_to_widen_says_why():
    pinned = facts_of([group("x", 64, pinned="an output")], [layer("fc", (64, 64))])
    with pytest.raises(BudgetError, match=r"nothing to widen.*an output"):
        plan_of(pinned, sparsity=0.5)


@pytest.mark.parametrize(
    "options", [{"sparsity": 0.0}, {"width": 1.0}, {"sparsity": 0.0, "family": "masked"}]
)
def test_no_sparsity_gives_back_the_dense_model(options):
    made = plan_of(transformer(), **options)
    assert made.flops.ratio == 1
    assert not any(each.masked for each in made.layers)
    assert all(each.size == each.width for each in made.groups)


def test_the_default_sparsity_is_three_quarters():
    assert plan_of(mlp()).options.sparsity == 0.75


def test_masked_keeps_every_shape_and_masks_the_hidden_layers():
    made = plan_of(transformer(), family="masked", sparsity=0.9)
    hidden = [each for each in made.layers if each.role == "hidden"]
    assert len(hidden) == 6
    assert all(
        each.shape == each.dense_shape and each.nnz == round(0.1 * math.prod(each.shape)) for each in hidden
    )
    assert made.flops.ratio < 1


@pytest.mark.parametrize("scope", ["all", "inner"])
def test_the_per_layer_budget_keeps_the_flops_of_each_masked_layer(scope):
    made = plan_of(transformer(), sparsity=0.75, budget="layer", scope=scope)
    masked = [each for each in made.layers if each.masked]
    assert masked and all(each.flops == pytest.approx(each.dense_flops, rel=1e-3) for each in masked)
    assert made.density == pytest.approx(0.25, abs=0.06)


def test_densities_are_capped_at_one_and_still_spend_everything():
    densities = spread((8.0, 1.0, 1.0), (10.0, 100.0, 100.0), 60.0)
    assert densities[0] == 1.0
    assert 10 * densities[0] + 100 * densities[1] + 100 * densities[2] == pytest.approx(60)
