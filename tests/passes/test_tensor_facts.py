"""Roles, fans and densities of every parameter, as the scaling table reads them."""

import pytest
import torch
from torch import nn

import sparsify
from sparsify.passes.tensor_facts import tensor_facts
from tests.passes.rewriting import Rewriting


def facts_by_name(name, **options):
    case = Rewriting(name).plan(**options)
    found = tensor_facts(case.traced, case.facts, case.made)
    assert [each.fqn for each in found] == [fqn for fqn, _ in case.traced.module.named_parameters()]
    return case, {each.fqn: each for each in found}


@pytest.mark.parametrize("name", ["mlp", "resnet", "bert", "gpt2", "llama"])
def test_masked_weights_have_their_realised_ratios(name):
    case, found = facts_by_name(name)
    masked = [layer for layer in case.made.layers if layer.masked]
    assert masked
    for layer in masked:
        fact = found[layer.weight]
        assert (fact.role, fact.density) == ("hidden", layer.density)
        assert fact.fan_out / fact.fan_out_base == layer.width
        assert fact.fan_in / fact.fan_in_base == layer.shape[1] / layer.dense_shape[1]


def test_everything_but_masked_weights_is_dense():
    case, found = facts_by_name("resnet")
    masked = {layer.weight for layer in case.made.layers if layer.masked}
    others = [fact for fqn, fact in found.items() if fqn not in masked]
    assert others and all(fact.density == 1 for fact in others)
    assert found["stem.weight"].role == "input" and found["stem.weight"].fan_in == 9
    assert found["bn.weight"].role == found["bn.bias"].role == "norm"
    assert found["layer1.conv1.weight"].batchnorm_follows


def test_a_table_that_is_also_the_readout_is_scaled_as_the_readout():
    case, found = facts_by_name("gpt2")
    tied = {name for tie in case.traced.ties for name in tie}
    fact = next(fact for fqn, fact in found.items() if fqn in tied)
    assert fact.role == "readout" and fact.fan_in > fact.fan_in_base
    assert found["transformer.wpe.weight"].role == "embedding"


def test_depthwise_keeps_its_fan_in():
    _, found = facts_by_name("flatten_cnn")
    fact = found["depthwise.weight"]
    assert (fact.role, fact.fan_in, fact.fan_in_base) == ("depthwise", 9, 9)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_scaled_by_its_own_fans(groups):
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 8, 2, stride=2, groups=groups),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    )
    made = sparsify.transform(model.eval(), (torch.randn(2, 3, 8, 8),), sparsity=0.75, multiple=2)
    up = made.get_submodule("4")
    scale = made.sparsify.scaling["4.weight"]
    assert up.in_channels > 32
    assert (scale.m_in, scale.m_out) == (up.in_channels / 32, up.out_channels / 8)
    assert scale.adam_lr == pytest.approx(32 / up.in_channels)
