"""Merging: what is one matrix becomes one layer, and computes the same."""

import pytest
import torch

from sparsify.archive import load, save
from sparsify.errors import UserError
from sparsify.onnx_export import export
from sparsify.passes.merge import merge, multiply
from tests.passes.families import example, rewritten, traced_model
from tests.passes.test_families import randomised

MERGED = [
    ("dense", "parallel", "none", 2),
    ("convolutions", "parallel", "none", 3),
    ("convolutions", "parallel", "norm", 3),
    ("sequence", "parallel", "auto", 1),
    ("twice", "parallel", "none", 1),
    ("convolutions", "factorized", "none", 3),
    ("functional", "factorized", "none", 2),
    ("volume", "doped", "auto", 1),
    ("convolutions", "doped", "auto", 3),
    ("functional", "doped", "auto", 2),
]


def parts(model):
    return [
        name for name, _ in model.named_modules() if name.rpartition(".")[2] in ("branches", "u", "sparse")
    ]


@pytest.mark.parametrize(("name", "family", "nonlinearity", "count"), MERGED)
def test_merged_layers_compute_the_same_in_the_layers_own_shape(name, family, nonlinearity, count):
    model = randomised(rewritten(name, family=family, branch_nonlinearity=nonlinearity)).eval()
    assert len(set(parts(model))) >= count
    before = model(example(name))
    result = merge(model)
    assert not parts(result)
    after = result(example(name))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    dense = traced_model(name)[0]
    sizes = [sum(p.numel() for p in one.parameters() if p.dim() > 1) for one in (result, dense)]
    assert sizes[0] == sizes[1]
    last = [layer for layer in model.sparsify.plan.layers if layer.masked][-1]
    with torch.no_grad():
        result.get_submodule(last.fqn).weight.mul_(2)
    assert not torch.allclose(result(example(name)), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(example(name)), before)


@pytest.mark.parametrize("family", ["parallel", "factorized"])
def test_an_activation_inside_keeps_the_parts_apart(family):
    model = rewritten("dense", family=family).eval()
    assert parts(model) and merge(model) is model


def test_layer_normalised_branches_stay():
    model = rewritten("dense", family="parallel", branch_nonlinearity="norm").eval()
    assert merge(model) is model


def test_a_product_with_more_multiplications_than_its_factors_stays():
    model = rewritten(
        "dense", family="factorized", branch_nonlinearity="none", sparsity=0.9, width=2.0
    ).eval()
    kept = sum(tensor.nnz for layer in model.sparsify.plan.layers if layer.masked for tensor in layer.tensors)
    assert kept < 24 * 16 + 20 * 24
    assert merge(model) is model


def test_batch_statistics_are_no_matrix():
    with pytest.raises(UserError, match="eval"):
        merge(rewritten("sequence", family="parallel").train())


def test_what_is_not_merged_is_shared_and_the_record_has_no_plan():
    model = rewritten("dense", family="doped").eval()
    result = merge(model)
    assert result.get_parameter("stem.weight") is model.get_parameter("stem.weight")
    assert result.sparsify.plan is None and result.sparsify.scaling is None
    assert {entry.new for entry in result.sparsify.parameter_map} <= set(result.state_dict())


def test_a_loaded_model_merges_and_a_merged_one_is_saved(tmp_path):
    model = randomised(rewritten("sequence", family="parallel")).eval()
    save(model, tmp_path / "model.pt2")
    result = merge(load(tmp_path / "model.pt2"))
    assert not parts(result)
    save(result, tmp_path / "merged.pt2")
    assert torch.equal(load(tmp_path / "merged.pt2")(example("sequence")), result(example("sequence")))


def test_products_of_grouped_convolutions_are_taken_by_group():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u = torch.nn.Conv2d(8, 12, 3, groups=4, bias=False)
        v = torch.nn.Conv2d(12, 16, 1, groups=4, bias=False)
        x = torch.randn(2, 8, 5, 5)
    weight = multiply(v.weight, u.weight)
    assert weight.shape == (16, 2, 3, 3)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, groups=4), v(u(x)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "family", "nonlinearity", "products"),
    [
        ("dense", "parallel", "auto", 10),
        ("convolutions", "factorized", "auto", 7),
        ("sequence", "parallel", "auto", 3),
    ],
)
def test_export_merges_what_it_can_and_agrees_with_the_unmerged_model(
    name, family, nonlinearity, products, tmp_path
):
    import onnx

    model = randomised(rewritten(name, family=family, branch_nonlinearity=nonlinearity))
    kept = parts(model)
    report = export(model, tmp_path / "model.onnx", dense=True)
    assert report.max_abs_error < 1e-4
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert sum(node.op_type in ("Conv", "Gemm", "MatMul") for node in nodes) == products
    assert parts(model) == kept and model.sparsify.plan is not None
