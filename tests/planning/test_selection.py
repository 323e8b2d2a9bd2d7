"""Which layers are masked, and the refusals of the others."""

import pytest

from sparsify.errors import UserError
from sparsify.graph.poly import Poly
from sparsify.planning import PlanOptions, plan_from_facts
from tests.planning.hand_built import facts_of, group, layer, mlp, transformer


def plan_of(facts, ties=(), **options):
    return plan_from_facts(facts, PlanOptions(**options), ties=ties)


def masked(made):
    return {each.fqn for each in made.layers if each.masked}


def rules(made):
    return {refusal.fqn: refusal.rule for refusal in made.refusals}


def test_every_layer_is_masked_or_refused_by_name():
    made = plan_of(transformer())
    assert masked(made) == {"attn.q", "attn.k", "attn.v", "attn.out", "fc1", "fc2"}
    assert rules(made) == {"embed": "embedding", "head": "readout"}
    assert all(refusal.reason for refusal in made.refusals)


def test_inner_leaves_the_residual_stream_alone():
    made = plan_of(transformer(), scope="inner")
    assert made.widths["d"] == 64
    assert made.widths["f"] > 256 and made.widths["h"] > 4


def test_inner_refuses_what_lies_between_residual_streams():
    d, e, f = (Poly.symbol(name) for name in "def")
    layers = [layer("shortcut", (e, d)), layer("fc1", (f, d)), layer("fc2", (e, f))]
    groups = [group("d", 64, residual=True), group("e", 64, residual=True), group("f", 64)]
    made = plan_of(facts_of(groups, layers), scope="inner")
    assert masked(made) == {"fc1", "fc2"} and rules(made) == {"shortcut": "scope"}


def test_pinned_layers_give_the_reason_of_the_facts():
    a = Poly.symbol("a")
    layers = [layer("free", (a, 64)), layer("pooler", (64, 64))]
    groups = [
        group("a", 64),
        group("x", 64, ["pooler.weight[0]", "pooler.weight[1]"], pinned="a model output"),
    ]
    refusal = next(each for each in plan_of(facts_of(groups, layers)).refusals if each.fqn == "pooler")
    assert (refusal.rule, refusal.reason) == ("pinned", "a model output")


def test_a_residual_stream_that_cannot_widen_is_named():
    f = Poly.symbol("f")
    layers = [layer("fc1", (f, 64)), layer("fc2", (64, f))]
    groups = [group("f", 64), group("s", 64, ["fc2.weight[0]"], residual=True, pinned="a model output")]
    assert rules(plan_of(facts_of(groups, layers))) == {"fc2.weight": "pinned"}
    assert not plan_of(facts_of(groups, layers), scope="inner").refusals


def test_keep_dense_keeps_weight_and_width_where_nothing_else_needs_it():
    made = plan_of(transformer(), keep_dense=("fc*",), scope="inner")
    assert masked(made) == {"attn.q", "attn.k", "attn.v", "attn.out"}
    assert made.widths["f"] == 256
    assert rules(made)["fc1"] == "keep-dense"


def test_only_masks_nothing_else():
    made = plan_of(transformer(), only=("fc?",), scope="inner")
    assert masked(made) == {"fc1", "fc2"} and made.widths["h"] == 4
    assert rules(made)["attn.q"] == "only"


@pytest.mark.parametrize("option", ["keep_dense", "only"])
def test_unknown_patterns_name_near_matches(option):
    with pytest.raises(UserError, match=r"'attn\.qq'.*attn\.q"):
        plan_of(transformer(), **{option: ("attn.qq",)})


def test_a_tied_weight_is_masked_only_if_every_use_allows_it():
    a, b = Poly.symbol("a"), Poly.symbol("b")
    layers = [layer("stem", (a, b), "input"), layer("twin", (a, b)), layer("fc", (b, a))]
    made = plan_of(facts_of([group("a", 64), group("b", 64)], layers), ties=[("stem.weight", "twin.weight")])
    assert masked(made) == {"fc"} and rules(made)["twin"] == "tied"
    assert {each.weight for each in made.layers} == {"stem.weight", "fc.weight"}


def test_tied_hidden_layers_share_one_count():
    a, b = Poly.symbol("a"), Poly.symbol("b")
    layers = [layer("one", (a, b)), layer("two", (a, b)), layer("fc", (b, a))]
    made = plan_of(facts_of([group("a", 64), group("b", 64)], layers), ties=[("one.weight", "two.weight")])
    one, two, _ = made.layers
    assert one.nnz == two.nnz and one.weight == two.weight and one.masked
    assert made.flops.ratio == pytest.approx(1, abs=1e-3)


def test_depthwise_stays_dense_and_grouped_is_masked():
    c, g = Poly.symbol("c"), Poly.symbol("g")
    layers = [
        layer("depth", (c, 1, 3, 3), "depthwise", "conv2d"),
        layer("group", (4 * g, 4, 3, 3), "grouped", "conv2d"),
        layer("point", (c, c, 1, 1), kind="conv2d"),
    ]
    made = plan_of(facts_of([group("c", 64), group("g", 16, granularity=4)], layers))
    assert masked(made) == {"group", "point"} and rules(made) == {"depth": "depthwise"}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("family", "thin", "unknown"),
        ("pattern", "diagonal", "unknown"),
        ("scope", "outer", "unknown"),
        ("budget", "time", "not available"),
        ("distribution", "er", "unknown"),
        ("width", 2.0, "masked"),
    ],
)
def test_options_out_of_range_are_user_errors(option, value, message):
    options = {"family": "masked"} if option == "width" else {}
    with pytest.raises(UserError, match=message):
        plan_of(mlp(), **{**options, option: value})
