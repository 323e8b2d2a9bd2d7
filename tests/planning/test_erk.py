"""Erdős–Rényi-Kernel densities: the published code's numbers, and under a FLOP budget."""

import functools
from math import floor, prod

import pytest

from sparsify import trace
from sparsify.errors import UserError
from sparsify.graph.facts import facts as facts_of
from sparsify.planning import Plan, PlanOptions, fit, plan_from_facts
from sparsify.planning.distribution import erk, spread
from tests.planning.hand_built import transformer
from tests.planning.resnets import resnet

LENET = ((300, 784), (100, 300), (10, 100))


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [(0.9, (0.9204, 0.7698, 0.0)), (0.95, (0.9615, 0.8887, 0.0815)), (0.98, (0.9846, 0.9555, 0.6326))],
)
def test_lenet_has_the_sparsities_of_the_published_code(sparsity, expected):
    """Which counts N − ⌊S·N⌋ kept weights a layer, and shares their sum."""
    total = sum(prod(shape) - floor(sparsity * prod(shape)) for shape in LENET)
    densities = spread(erk(LENET, LENET), [prod(shape) for shape in LENET], total)
    assert [1 - density for density in densities] == pytest.approx(expected, abs=5e-5)


@functools.cache
def cifar():
    return facts_of(trace(*resnet("cifar-18")))


@pytest.mark.parametrize("pattern", ["unstructured", "fan-in", "4x1"])
@pytest.mark.parametrize("options", [{"sparsity": 0.75}, {"sparsity": None, "width": 1.5}], ids=str)
def test_whole_model_keeps_its_flops_with_densities_in_proportion(pattern, options):
    made = plan_from_facts(cifar(), PlanOptions(distribution="erk", pattern=pattern, **options))
    assert made.flops.ratio == pytest.approx(1, abs=1e-3)
    masked = [each for each in made.layers if each.masked]
    scales = [each.density * prod(each.shape) / sum(each.shape) for each in masked]
    assert len(masked) > 10 and max(scales) / min(scales) < 1.05
    assert max(each.density for each in masked) < 1


def test_layers_that_it_fills_stay_dense_and_are_reported():
    made = plan_from_facts(cifar(), PlanOptions(distribution="erk"))
    filled = {each.fqn for each in made.refusals if each.rule == "density"}
    assert "blocks.2.shortcut.0" in filled
    for each in made.layers:
        if each.fqn in filled:
            assert each.family == "dense" and each.width > 1 and "density 1" in each.reason
    assert fit(Plan.from_json(made.to_json()), cifar()) == made


def test_the_masked_family_has_the_sparsity_asked_for_over_all_layers_it_spreads_over():
    made = plan_from_facts(cifar(), PlanOptions(family="masked", sparsity=0.9, distribution="erk"))
    filled = {each.fqn for each in made.refusals if each.rule == "density"}
    spread_over = [each for each in made.layers if each.masked or each.fqn in filled]
    size = sum(prod(each.shape) for each in spread_over)
    assert sum(each.nnz for each in spread_over) == pytest.approx(0.1 * size, abs=len(spread_over))


@pytest.mark.parametrize(
    "options", [{"family": "parallel"}, {"family": "factorized"}, {"family": "doped"}, {"budget": "layer"}]
)
def test_what_has_no_densities_to_spread_refuses_it(options):
    with pytest.raises(UserError, match="'erk'"):
        plan_from_facts(transformer(), PlanOptions(distribution="erk", **options))
