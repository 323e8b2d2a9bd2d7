"""Published numbers: dense FLOPs, solved densities, and what is feasible for GPT-3 Small."""

import functools

import pytest

from sparsify import plan, trace
from sparsify.errors import BudgetError
from sparsify.graph.facts import facts as facts_of
from sparsify.planning import PlanOptions, plan_from_facts
from tests.planning.hand_built import gpt3_small
from tests.planning.resnets import MODELS, reference_flops, resnet

DENSE_FLOPS = {"cifar-18": 1_115_226_800, "imagenet-18": 3_647_128_359, "imagenet-34": 7_355_270_501}
WIDTHS = {0.5: 90, 0.75: 128, 0.9: 202}
DENSITIES = {
    "cifar-18": (0.5042, 0.2482, 0.0988),
    "imagenet-18": (0.4902, 0.2311, 0.0840),
    "imagenet-34": (0.498, 0.2407, 0.0923),
}
TABLE = [
    (name, width, density)
    for name, densities in DENSITIES.items()
    for width, density in zip(WIDTHS.values(), densities, strict=True)
]


@functools.cache
def traced(name):
    found = trace(*resnet(name))
    return found, facts_of(found)


@pytest.mark.parametrize("name", MODELS)
def test_dense_flops_by_the_rules_of_the_published_code(name):
    assert sum(reference_flops(name)) == DENSE_FLOPS[name]


@pytest.mark.parametrize(("name", "width", "density"), TABLE)
def test_densities_solved_by_those_rules_are_the_published_ones(name, width, density):
    fixed, masked = reference_flops(name, width)
    assert (DENSE_FLOPS[name] - fixed) / masked == pytest.approx(density, abs=7e-5)


@pytest.mark.parametrize(("name", "width", "density"), TABLE)
def test_our_count_solves_nearly_the_same_densities(name, width, density):
    """Ours leaves out norms and pooling, which grow with the width: up to 0.0015 more is left for weights."""
    found, facts = traced(name)
    made = plan(found, width=width / 64, facts=facts)
    assert {layer.shape[0] for layer in made.layers if layer.fqn == "stem"} == {width}
    dense = {layer.fqn for layer in made.layers if not layer.masked}
    assert dense == {"stem", "head"}
    assert made.flops.ratio == pytest.approx(1, abs=1e-5)
    assert density < made.density < density + 0.0015


@pytest.mark.parametrize("name", MODELS)
def test_our_dense_count_is_that_of_the_products_alone(name):
    """Within a half percent of the published count, at the example's two images."""
    found, facts = traced(name)
    made = plan(found, sparsity=0.0, facts=facts)
    assert 0.993 < made.flops.dense / (2 * DENSE_FLOPS[name]) < 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sparsity", WIDTHS)
@pytest.mark.parametrize("family", ["parallel", "factorized", "doped"])
def test_every_replaced_convolution_keeps_its_flops(name, sparsity, family):
    found, facts = traced(name)
    made = plan(found, family=family, sparsity=sparsity, facts=facts)
    assert made.flops.sparse == made.flops.dense
    assert all(layer.flops == layer.dense_flops for layer in made.layers)
    assert {layer.fqn for layer in made.layers if not layer.masked} == {"stem", "head"}
    assert not any("shortcut" in refusal.fqn for refusal in made.refusals)


RANKS = {
    "factorized": {0.5: (116, 922), 0.75: (231, 1844), 0.9: (577, 4609)},
    "doped": {0.5: (28, 230), 0.75: (43, 345), 0.9: (51, 414)},
}


@pytest.mark.parametrize("family", RANKS)
@pytest.mark.parametrize("sparsity", WIDTHS)
def test_ranks_of_the_published_code(family, sparsity):
    found, facts = traced("cifar-18")
    made = plan(found, family=family, sparsity=sparsity, facts=facts)
    ranks = {layer.fqn: layer.rank for layer in made.layers}
    assert (ranks["blocks.0.conv1"], ranks["blocks.7.conv2"]) == RANKS[family][sparsity]


@pytest.mark.parametrize(("sparsity", "branches"), [(0.5, 2), (0.75, 4), (0.9, 10), (0.8, 5)])
def test_branches_of_the_published_code(sparsity, branches):
    found, facts = traced("cifar-18")
    made = plan(found, family="parallel", sparsity=sparsity, facts=facts)
    replaced = [layer for layer in made.layers if layer.masked]
    assert {layer.branches for layer in replaced} == {branches}
    assert {layer.nonlinearity for layer in replaced} == {"follows"}
    assert made.density == pytest.approx(1 - sparsity, abs=1e-6)


@pytest.mark.parametrize(("tokens", "largest"), [(1024, 2.48), (2048, 2.11)])
def test_gpt3_small_has_a_largest_width(tokens, largest):
    with pytest.raises(BudgetError) as caught:
        plan_from_facts(gpt3_small(tokens), PlanOptions(sparsity=None, width=4.0))
    assert caught.value.largest_width == pytest.approx(largest, abs=0.011)
    made = plan_from_facts(gpt3_small(tokens), PlanOptions(sparsity=None, width=caught.value.largest_width))
    assert made.flops.ratio == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("width", "sparsity", "ratio"), [(1092, 0.5, 1.18), (1536, 0.75, 1.40)])
def test_gpt3_small_at_the_published_widths_is_not_iso_flop(width, sparsity, ratio):
    made = plan_from_facts(gpt3_small(1024), PlanOptions(sparsity=sparsity, width=width / 768))
    assert made.widths["d"] == width
    assert made.flops.ratio == pytest.approx(ratio, abs=0.005)
    inner = plan_from_facts(gpt3_small(1024), PlanOptions(sparsity=sparsity, scope="inner"))
    assert inner.flops.ratio == pytest.approx(1, abs=1e-3) and inner.widths["d"] == 768
