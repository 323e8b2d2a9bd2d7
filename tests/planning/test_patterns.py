"""Plans under every pattern: counts that it can have, shapes that it fits, and the FLOPs that come of it."""

import json
import math

import pytest

from sparsify.errors import BudgetError, InvalidPlanError, UserError
from sparsify.graph.poly import Poly
from sparsify.pattern_rules import parse_rule
from sparsify.planning import Plan, PlanOptions, fit, plan_from_facts
from tests.planning.hand_built import facts_of, gpt3_small, group, layer, mlp, transformer

ADJUSTABLE = ("unstructured", "fan-in", "4x1", "1x8", "8x8", "16x4")
FIXED = ("2:4", "1:4", "3:16")
FAMILIES = ("wide", "masked", "parallel", "factorized", "doped", "auto")


def plan_of(facts, pattern, **options):
    options.setdefault("sparsity", None)
    return plan_from_facts(facts, PlanOptions(pattern=pattern, **options))


def steps(made):
    """FLOPs of the smallest change that the masks of a plan allow, as a share of the model's."""
    rule = parse_rule(made.options.pattern)
    found = [
        each.flops / each.nnz * rule.unit(tensor.shape)
        for each in made.layers
        for tensor in each.tensors
        if tensor.masked
    ]
    return min(found) / made.flops.dense


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern", [*ADJUSTABLE, *FIXED[:2]])
def test_every_mask_has_a_count_and_a_shape_of_the_pattern(pattern, family):
    nonlinearity = {"branch_nonlinearity": "relu"} if family == "parallel" else {}
    made = plan_of(transformer(), pattern, family=family, **nonlinearity)
    rule = parse_rule(pattern)
    masked = [tensor for each in made.layers for tensor in each.tensors if tensor.masked]
    assert len(masked) >= 6
    for tensor in masked:
        assert rule.refusal(tensor.shape) is None
        assert tensor.nnz == rule.count(tensor.shape, tensor.nnz / math.prod(tensor.shape))
    assert fit(Plan.from_json(made.to_json()), transformer()) == made


@pytest.mark.parametrize("facts", [transformer(), gpt3_small(2048)], ids=["small", "gpt3"])
@pytest.mark.parametrize("pattern", ADJUSTABLE)
@pytest.mark.parametrize("options", [{"sparsity": 0.75}, {"sparsity": 0.9}, {"width": 1.25}], ids=str)
def test_the_budget_is_kept_to_a_step_of_the_pattern(facts, pattern, options):
    made = plan_of(facts, pattern, **options)
    assert abs(made.flops.ratio - 1) <= max(1e-3, steps(made))
    other = facts.other_flops.evaluate(made.widths)
    assert sum(each.flops for each in made.layers) + other == pytest.approx(
        made.flops.sparse, abs=len(made.layers)
    )


@pytest.mark.parametrize("pattern", FIXED)
def test_an_n_m_pattern_has_its_density_and_the_widths_are_solved(pattern):
    made = plan_of(gpt3_small(2048), pattern)
    density = parse_rule(pattern).density
    assert {each.density for each in made.layers if each.masked} == {density}
    assert made.options.sparsity == 1 - density
    assert made.flops.ratio == pytest.approx(1, abs=1e-3 if pattern == "2:4" else 4e-3)
    assert all(width % parse_rule(pattern).m == 0 for width in made.widths.values())


def test_groups_go_to_either_neighbouring_width_where_one_factor_is_too_coarse():
    """Widths 64·√2 = 90.5 are 88 or 96 in eights: a model of many groups comes nearer than of one."""
    count = 9
    names = [f"g{i}" for i in range(count)]
    layers = [
        layer(f"fc{i}", (Poly.symbol(names[(i + 1) % count]), Poly.symbol(names[i]))) for i in range(count)
    ]
    facts = facts_of([group(name, 64) for name in names], layers)
    made = plan_of(facts, "2:4", multiple=8)
    assert set(made.widths.values()) == {88, 96}
    assert made.flops.ratio == pytest.approx(1, abs=1e-3 + 8 * 96 / 2 / (count * 64 * 64))


def test_a_width_beside_n_m_is_taken_as_it_is():
    made = plan_of(mlp(), "2:4", width=2.0)
    assert made.widths["a"] == made.widths["b"] == 128
    assert next(each for each in made.layers if each.fqn == "fc").density == 0.5
    assert made.flops.ratio > 1.5


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        ("2:4", {"sparsity": 0.75}, r"its sparsity is 0\.5, not 0\.75"),
        ("2:4", {"budget": "layer"}, "budget='layer'"),
        ("2:4", {"distribution": "erk"}, "'erk'"),
        ("3:4", {"family": "parallel"}, "4/3 is not whole"),
        ("4:2", {}, "4:2"),
    ],
)
def test_options_that_contradict_the_pattern(pattern, options, message):
    with pytest.raises(UserError, match=message):
        plan_of(transformer(), pattern, **options)


def test_branches_of_n_m_have_the_flops_of_the_layer():
    made = plan_of(transformer(), "2:8", family="parallel", branch_nonlinearity="relu")
    replaced = [each for each in made.layers if each.family == "parallel"]
    assert replaced and all(each.branches == 4 and each.flops == each.dense_flops for each in replaced)


def test_layers_whose_shape_refuses_the_pattern_stay_dense_and_say_why():
    x, odd = Poly.symbol("x"), layer("odd", (30, Poly.symbol("x")))
    facts = facts_of([group("x", 64)], [layer("up", (x, 30)), layer("down", (32, x)), odd])
    made = plan_of(facts, "4x1", family="masked", sparsity=0.5)
    assert {each.fqn: each.family for each in made.layers} == {
        "up": "masked",
        "down": "masked",
        "odd": "dense",
    }
    refusal = next(each for each in made.refusals if each.fqn == "odd")
    assert refusal.rule == "pattern" and "30 outputs are no multiple of 4" in refusal.reason
    wide = plan_of(facts, "1x4", sparsity=0.5)
    assert [each.fqn for each in wide.layers if each.masked] == ["down", "odd"]
    assert wide.flops.ratio == pytest.approx(1, abs=max(1e-3, steps(wide)))


def test_a_pattern_that_fits_no_layer_is_an_error():
    facts = facts_of([group("x", 30)], [layer("fc", (Poly.symbol("x"), 30))])
    with pytest.raises(UserError, match=r"fits none of the layers.*30 inputs are no multiple of 4"):
        plan_of(facts, "2:4", family="masked")


def test_blocks_decide_what_widths_are_rounded_to():
    made = plan_of(transformer(), "32x1", sparsity=0.75)
    assert made.widths["d"] % 32 == made.widths["f"] % 32 == 0
    assert 16 * made.widths["h"] % 32 == 0


def edited(pattern, fqn, **values):
    data = json.loads(plan_of(transformer(), pattern).to_json())
    next(each for each in data["layers"] if each["fqn"] == fqn).update(values)
    made = fit(Plan.from_json(json.dumps(data)), transformer())
    return next(each for each in made.layers if each.fqn == fqn)


@pytest.mark.parametrize("pattern", ["fan-in", "8x8"])
def test_an_edited_density_is_realised_in_steps_of_the_pattern(pattern):
    layer_ = edited(pattern, "fc1", density=0.3)
    assert layer_.nnz == parse_rule(pattern).count(layer_.shape, 0.3)
    assert layer_.flops < 0.4 * layer_.flops / layer_.density


def test_edits_that_the_pattern_forbids_name_the_layer():
    with pytest.raises(InvalidPlanError, match=r"layers \(fc1\)\.density: pattern 2:4 keeps 0\.5"):
        edited("2:4", "fc1", density=0.3)
    data = json.loads(plan_of(transformer(), "2:4").to_json())
    next(each for each in data["groups"] if each["id"] == "f")["width"] = 258
    with pytest.raises(InvalidPlanError, match=r"layers \(fc2\).*258 inputs are no multiple of 4"):
        fit(Plan.from_json(json.dumps(data)), transformer())
    data["options"]["pattern"] = "stripes"
    with pytest.raises(InvalidPlanError, match=r"options\.pattern"):
        fit(Plan.from_json(json.dumps(data)), transformer())


def test_too_wide_still_names_the_largest_width():
    with pytest.raises(BudgetError, match="largest feasible width"):
        plan_of(transformer(), "fan-in", width=8.0)
