"""The readout multiplier: where it goes and that it is 1/m_d."""

import pytest
import torch

from sparsify.passes.readout import MULTIPLY
from tests.passes.rewriting import Rewriting


def factors(case):
    marked = [
        node
        for node in case.result.graph.nodes
        if node.meta.get("provenance", [{}])[-1].get("pass") == "readout multiplier"
    ]
    made = [node for node in marked if node.target is MULTIPLY]
    assert all(any(source in made for source in node.all_input_nodes) for node in marked if node not in made)
    return [node.args[1] for node in made]


@pytest.mark.parametrize("name", ["mlp", "resnet", "vit", "gpt2", "llama"])
def test_the_readout_reads_its_input_divided_by_its_growth(name):
    case = Rewriting(name).plan(scope="all").rewrite()
    (readout,) = [layer for layer in case.made.layers if layer.role == "readout"]
    assert factors(case) == [pytest.approx(readout.dense_shape[1] / readout.shape[1])]


@pytest.mark.parametrize("options", [{"parameterization": "sp"}, {"init": "preserve"}])
def test_nothing_is_inserted_where_the_factor_is_one(options):
    plan = {"family": "masked"} if "init" in options else {}
    assert factors(Rewriting("mlp").plan(**plan).rewrite(**options)) == []


def test_the_bias_is_not_multiplied():
    case = Rewriting("mlp").plan().rewrite()
    with torch.no_grad():
        case.result.get_parameter("head.weight").zero_()
        case.result.get_parameter("head.bias").fill_(3.0)
    assert all(bool((out == 3.0).all()) for out in case.outputs())
