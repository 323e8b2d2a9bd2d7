"""The readout multiplier: where it goes and that it is 1/m_d."""

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import UserError
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


def test_the_users_multipliers_stand_behind_inputs_and_before_readouts():
    """α_in on every embedding, α_out beside 1/m_d on the readout; recorded, and in every parameterization."""
    plain, multiplied = (
        Rewriting("gpt2").plan().rewrite(input_multiplier=a, output_multiplier=b).result
        for a, b in ((1.0, 1.0), (3.0, 0.5))
    )
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), multiplied.parameters(), strict=True))
    with torch.no_grad():
        for name in ("wte", "wpe"):  # the table is also the readout's weight
            plain.get_parameter(f"transformer.{name}.weight").mul_(3.0)
    tokens = torch.randint(0, 96, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    expected = plain.eval()(tokens, mask).logits * 0.5 / 3
    torch.testing.assert_close(multiplied.eval()(tokens, mask).logits, expected, rtol=1e-4, atol=1e-6)
    scaling = multiplied.sparsify.scaling
    assert (scaling.input_multiplier, scaling.output_multiplier) == (3.0, 0.5)
    assert scaling["transformer.wpe.weight"].forward == 3.0
    readout = scaling["transformer.wte.weight"]
    assert readout.forward == pytest.approx(0.5 / readout.m_in)
    assert readout.adam_lr == 1.0


def test_a_first_layer_has_its_input_multiplied_and_its_bias_not():
    case = Rewriting("mlp").plan().rewrite(input_multiplier=2.0, parameterization="sp")
    x = torch.randn(3, 12)
    seen = []
    case.result.get_submodule("inner.0").register_forward_hook(lambda module, args, out: seen.append(out))
    case.result(x)
    layer = case.result.get_submodule("inner.0")
    torch.testing.assert_close(seen[0], nn.functional.linear(2 * x, layer.weight, layer.bias))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_multipliers_out_of_range_are_refused(value):
    with pytest.raises(UserError, match="output_multiplier must be positive"):
        Rewriting("mlp").plan().rewrite(output_multiplier=value)


def test_a_layer_in_several_pieces_has_no_place_for_a_multiplier():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12))
    options = {"family": "doped", "sparsity": 0.5, "only": ("2", "4")}
    sparsify.transform(model, (torch.zeros(2, 8),), **options)
    with pytest.raises(UserError, match=r"output_multiplier: layer '4' is doped"):
        sparsify.transform(model, (torch.zeros(2, 8),), output_multiplier=2.0, **options)
