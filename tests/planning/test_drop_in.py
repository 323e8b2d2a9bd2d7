"""Which layers become parallel, factorized or doped, and the refusals of the others."""

import pytest

from sparsify.errors import BudgetError, UserError
from sparsify.graph.poly import Poly
from sparsify.planning import PlanOptions, plan_from_facts
from tests.planning.hand_built import facts_of, group, layer, mlp, transformer

HIDDEN = {"attn.q", "attn.k", "attn.v", "attn.out", "fc1", "fc2"}


def plan_of(facts, ties=(), **options):
    options.setdefault("sparsity", None)
    return plan_from_facts(facts, PlanOptions(**options), ties=ties)


def families(made):
    return {each.fqn: each.family for each in made.layers if each.family != "dense"}


def rules(made):
    return {refusal.fqn: refusal.rule for refusal in made.refusals}


@pytest.mark.parametrize("family", ["factorized", "doped"])
@pytest.mark.parametrize("sparsity", [0.3, 0.75, 0.9])
def test_every_hidden_layer_is_replaced_and_no_width_changes(family, sparsity):
    made = plan_of(transformer(), family=family, sparsity=sparsity)
    assert families(made) == dict.fromkeys(HIDDEN, family)
    assert all(each.width == each.size for each in made.groups)
    assert made.flops.sparse == made.flops.dense
    assert rules(made) == {"embed": "embedding", "head": "readout"}
    assert all(each.width == 1 and each.shape == each.dense_shape for each in made.layers)
    assert all(each.nnz == sum(tensor.nnz for tensor in each.tensors) for each in made.layers)


def test_branches_need_a_nonlinearity():
    made = plan_of(transformer(), family="parallel", sparsity=0.75)
    assert families(made) == {"fc1": "parallel"}
    refused = {fqn for fqn, rule in rules(made).items() if rule == "linear-branches"}
    assert refused == HIDDEN - {"fc1"}
    reason = next(each.reason for each in made.refusals if each.fqn == "fc2")
    assert "one matrix" in reason and "--branch-nonlinearity" in reason


@pytest.mark.parametrize("name", ["relu", "norm+gelu", "none"])
def test_a_nonlinearity_given_by_name_goes_into_every_layer(name):
    made = plan_of(transformer(), family="parallel", sparsity=0.75, branch_nonlinearity=name)
    assert families(made) == dict.fromkeys(HIDDEN, "parallel")
    assert {each.nonlinearity for each in made.layers if each.masked} == {name}


def test_factors_take_what_follows_or_nothing():
    made = plan_of(transformer(), family="factorized", sparsity=0.75)
    inside = {each.fqn: each.nonlinearity for each in made.layers if each.masked}
    assert inside == {**dict.fromkeys(HIDDEN, "none"), "fc1": "follows"}
    plain = plan_of(transformer(), family="factorized", sparsity=0.75, branch_nonlinearity="none")
    assert {each.nonlinearity for each in plain.layers} == {"none"}


def test_sparse_first_factors_leave_the_second_dense():
    made = plan_of(transformer(), family="factorized", sparsity=0.75, sparse_factors="first")
    for each in made.layers:
        if each.masked:
            assert [tensor.masked for tensor in each.tensors] == [True, False]
    assert made.flops.sparse == made.flops.dense


def test_no_sparsity_gives_back_the_dense_layer():
    for family in ("parallel", "factorized", "doped", "auto"):
        made = plan_of(transformer(), family=family, sparsity=0.0)
        assert not families(made) and made.flops.ratio == 1


def test_inner_leaves_what_lies_between_streams_alone():
    d, e, f = (Poly.symbol(name) for name in "def")
    layers = [layer("shortcut", (e, d)), layer("fc1", (f, d)), layer("fc2", (e, f)), layer("pool", (64, 64))]
    groups = [
        group("d", 64, ["shortcut.weight[1]", "fc1.weight[1]"], residual=True),
        group("e", 64, ["shortcut.weight[0]", "fc2.weight[0]"], residual=True),
        group("f", 64, ["fc1.weight[0]", "fc2.weight[1]"]),
        group("p", 64, ["pool.weight[0]", "pool.weight[1]"], residual=True, pinned="an output"),
    ]
    facts = facts_of(groups, layers)
    made = plan_of(facts, family="doped", sparsity=0.5, scope="inner")
    assert set(families(made)) == {"fc1", "fc2"}
    assert rules(made) == {"shortcut": "scope", "pool": "scope"}
    assert len(families(plan_of(facts, family="doped", sparsity=0.5))) == 4


def test_a_shared_weight_is_refused_and_a_layer_called_twice_is_not():
    a, b = Poly.symbol("a"), Poly.symbol("b")
    layers = [layer("one", (a, b)), layer("two", (a, b)), layer("fc", (b, a))]
    facts = facts_of([group("a", 64), group("b", 64)], layers)
    made = plan_of(facts, ties=[("one.weight", "two.weight")], family="doped", sparsity=0.5)
    assert families(made) == {"fc": "doped"}
    assert rules(made) == {"one": "tied", "two": "tied"}
    assert "one, two" in made.refusals[0].reason


def test_a_normalisation_that_serves_two_layers_stays_where_it_is():
    a = Poly.symbol("a")
    layers = [layer(name, (a, a), follows="batch_norm", norm="bn") for name in ("one", "two")]
    layers.append(layer("three", (a, a), follows="batch_norm", norm="other"))
    facts = facts_of([group("a", 64)], layers)
    made = plan_of(facts, family="parallel", sparsity=0.5)
    assert families(made) == {"three": "parallel"} and rules(made) == {"one": "norm", "two": "norm"}
    assert "two" in made.refusals[0].reason
    assert len(families(plan_of(facts, family="factorized", sparsity=0.5))) == 3


def test_layers_of_another_make_have_no_form():
    a = Poly.symbol("a")
    layers = [layer("up", (a, a, 2, 2), kind="conv_transpose2d"), layer("fc", (a, a))]
    made = plan_of(facts_of([group("a", 64)], layers), family="doped", sparsity=0.5)
    assert families(made) == {"fc": "doped"} and rules(made) == {"up": "kind"}


def test_a_width_is_the_number_of_branches():
    made = plan_of(transformer(), family="parallel", width=3)
    assert next(each for each in made.layers if each.fqn == "fc1").branches == 3
    assert made.flops.ratio == 1 and made.density == pytest.approx(1 / 3, abs=1e-4)
    both = plan_of(transformer(), family="parallel", width=3, sparsity=0.5)
    assert both.density == 0.5 and both.flops.ratio > 1


def test_a_width_is_the_factor_on_the_rank():
    made = plan_of(transformer(), family="factorized", width=4.0)
    assert made.density == pytest.approx(0.25, abs=5e-3) and made.flops.ratio == 1
    both = plan_of(transformer(), family="factorized", width=4.0, sparsity=0.5)
    assert both.density == pytest.approx(0.5, abs=1e-4) and both.flops.ratio > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"family": "parallel", "width": 2.5}, "whole number"),
        ({"family": "parallel", "width": 0}, "whole number"),
        ({"family": "doped", "width": 2.0}, "sparsity decides the rank"),
        ({"family": "doped", "width": 2.0, "sparsity": 0.5}, "sparsity decides the rank"),
        ({"family": "doped", "branch_nonlinearity": "relu"}, "branch_nonlinearity"),
        ({"family": "parallel", "branch_nonlinearity": "swish"}, "unknown"),
        ({"family": "parallel", "sparse_factors": "first"}, "sparse_factors"),
        ({"family": "factorized", "sparse_factors": "second"}, "unknown"),
        ({"family": "wide", "multiple": 0}, "multiple"),
    ],
)
def test_options_that_do_not_go_together_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        plan_of(transformer(), **options)


@pytest.mark.parametrize(
    ("options", "below"),
    [
        ({"family": "parallel", "width": 10**9}, 1),
        ({"family": "factorized", "width": 1e4}, 0.01),
        ({"family": "factorized", "width": 30.0, "sparse_factors": "first"}, 0.01),
    ],
)
def test_too_wide_names_the_largest_width_and_that_one_works(options, below):
    with pytest.raises(BudgetError, match="largest feasible width") as caught:
        plan_of(transformer(), **options)
    largest = caught.value.largest_width
    made = plan_of(transformer(), **{**options, "width": largest}) if largest < 1000 else None
    assert made is None or made.flops.ratio == 1
    with pytest.raises(BudgetError):
        plan_of(transformer(), **{**options, "width": largest + below})


def test_a_layer_too_small_for_the_density_is_refused_and_the_others_go_on():
    a = Poly.symbol("a")
    layers = [layer("tiny", (2, 2)), layer("fc", (a, a))]
    made = plan_of(facts_of([group("a", 64)], layers), family="doped", sparsity=0.9)
    assert families(made) == {"fc": "doped"} and rules(made) == {"tiny": "too-small"}
    with pytest.raises(BudgetError, match="tiny"):
        plan_of(facts_of([group("a", 64)], layers[:1]), family="doped", sparsity=0.9)


def test_nothing_to_replace_gives_the_reasons():
    with pytest.raises(BudgetError, match=r"linear-branches \(1, as fc"):
        plan_of(mlp(), family="parallel", sparsity=0.5)


def test_auto_widens_where_it_can_and_replaces_the_rest():
    f = Poly.symbol("f")
    layers = [
        layer("fc1", (f, 64), follows="gelu"),
        layer("fc2", (64, f)),
        layer("mid", (64, 64), follows="relu"),
        layer("mix", (64, 64)),
        layer("head", (10, 64), "readout"),
    ]
    pinned = group("s", 64, ["fc2.weight[0]"], residual=True, pinned="an output")
    facts = facts_of([group("f", 256), pinned], layers)
    made = plan_of(facts, family="auto", sparsity=0.75)
    assert families(made) == {"fc1": "wide", "fc2": "wide", "mid": "parallel", "mix": "doped"}
    assert made.flops.ratio == pytest.approx(1, abs=1e-3) and made.widths["f"] > 256
    narrow = plan_of(facts, family="auto", width=2.0)
    assert narrow.widths["f"] == 512
    assert next(each for each in narrow.layers if each.fqn == "mid").branches == 2
    linear = plan_of(facts, family="auto", sparsity=0.75, branch_nonlinearity="none")
    assert families(linear)["mid"] == "doped"


def test_auto_without_a_free_width_replaces_everything():
    facts = facts_of([group("x", 64, pinned="an output")], [layer("fc", (64, 64), follows="relu")])
    made = plan_of(facts, family="auto", width=2.0)
    assert families(made) == {"fc": "parallel"} and made.layers[0].branches == 4


def test_heads_may_be_left_alone():
    made = plan_of(transformer(), sparsity=0.75, heads=False, scope="inner")
    assert made.widths["h"] == 4 and made.widths["f"] > 256
    assert {fqn for fqn, rule in rules(made).items() if rule == "heads"} == HIDDEN - {"fc1", "fc2"}
    assert made.flops.ratio == pytest.approx(1, abs=1e-3)
    everything = plan_of(transformer(), sparsity=0.75, heads=False)
    assert everything.widths["h"] == 4 and everything.widths["d"] > 64


@pytest.mark.parametrize("multiple", [1, 16, 64])
def test_widths_are_rounded_to_the_multiple_asked_for(multiple):
    made = plan_of(transformer(), sparsity=0.75, multiple=multiple, scope="inner")
    assert made.widths["f"] % multiple == 0 and (16 * made.widths["h"]) % multiple == 0
    assert made.flops.ratio == pytest.approx(1, abs=1e-3)
    narrow = plan_of(mlp(hidden=40), width=1.5, multiple=multiple)
    assert narrow.widths["a"] % multiple == 0
