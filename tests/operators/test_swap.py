"""`accelerate` on whole models: the same training, and the same everything else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim

import sparsify
from sparsify import dst
from sparsify.errors import UserError
from sparsify.masks import gradient_mask, masked_parameters, parse_pattern, set_mask
from sparsify.operators import SparseLinear
from sparsify.operators.decisions import LEAST_GAIN, estimated_conv_gain, estimated_gain


def masked(density: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    for layer in (model[0], model[2]):
        shape = layer.weight.shape
        pattern = parse_pattern("unstructured")
        set_mask(layer, "weight", pattern.random(shape, pattern.count(shape, density)))
    return model


def train(model, method, steps: int = 24, swap_at: int = -1):
    """Weights and masks after so many steps; accelerated before step `swap_at`."""
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    algorithm = method(model, optimizer)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        if step == swap_at:
            sparsify.accelerate(model, min_sparsity=0.0)
        x = torch.randn(32, 24, generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :10].argmax(1)).backward()
        optimizer.step()
    algorithm.remove()
    return model


METHODS = {
    "static": lambda model, optimizer: dst.Static(model, optimizer, total_steps=24),
    "set": lambda model, optimizer: dst.SET(model, optimizer, total_steps=24, update_every=5),
    "rigl": lambda model, optimizer: dst.RigL(model, optimizer, total_steps=24, update_every=5),
    "gmp": lambda model, optimizer: dst.GMP(
        model, optimizer, total_steps=24, update_every=5, target=0.05, start_fraction=0.0
    ),
}


@pytest.mark.parametrize("swap_at", [0, 7])
@pytest.mark.parametrize("method", METHODS)
def test_training_takes_the_same_course(method, swap_at):
    plain, fast = train(masked(), METHODS[method]), train(masked(), METHODS[method], swap_at=swap_at)
    assert type(fast[0]) is SparseLinear
    for (fqn, want), got in zip(
        masked_parameters(plain).items(), masked_parameters(fast).values(), strict=True
    ):
        assert torch.equal(got.mask, want.mask), fqn
        torch.testing.assert_close(got.param, want.param, rtol=1e-3, atol=1e-4)


def test_everything_but_the_class_is_the_same_object():
    model = masked()
    before = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    modules = [id(module) for module in model.modules()]
    keys = list(model.state_dict())
    assert sparsify.accelerate(model, min_sparsity=0.0) is model
    after = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    assert after == before and [id(module) for module in model.modules()] == modules
    assert list(model.state_dict()) == keys


def test_undone_bit_for_bit():
    model, x = masked(), torch.randn(5, 24)
    expected, state = model(x), copy.deepcopy(model.state_dict())
    sparsify.accelerate(model, min_sparsity=0.0)
    model(x).sum().backward()
    assert sparsify.decelerate(model) is model
    assert not any(isinstance(module, SparseLinear) for module in model.modules())
    assert torch.equal(model(x), expected)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    assert sparsify.acceleration_report(model) == ()


def test_outputs_agree_and_come_from_the_sparse_operator(monkeypatch):
    model, x = masked(), torch.randn(5, 24)
    expected = model(x)
    sparsify.accelerate(model, min_sparsity=0.0)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        model[0].weight[~model[0].weight_mask] = 1.0
    assert not torch.allclose(nn.functional.linear(x, model[0].weight, model[0].bias), model[0](x))


def test_layers_and_sparsity_are_respected():
    model = masked(0.3)
    sparsify.accelerate(model, layers=["0"], min_sparsity=0.5)
    report = {decision.fqn: decision for decision in sparsify.acceleration_report(model)}
    assert report["0"].sparse and not report["2"].sparse and "not among" in report["2"].reason
    sparsify.accelerate(model, min_sparsity=0.9)
    assert not any(decision.sparse for decision in sparsify.acceleration_report(model))
    assert type(model[0]) is nn.Linear


def test_layers_that_do_not_win_stay_dense_with_a_reason():
    wide = nn.Linear(768, 3072)
    set_mask(wide, "weight", torch.rand(3072, 768) < 0.05)
    narrow = nn.Linear(16, 8)
    set_mask(narrow, "weight", torch.rand(8, 16) < 0.05)
    conv, tall = nn.Conv2d(64, 64, 3), nn.Conv1d(64, 64, 3)
    set_mask(conv, "weight", torch.rand(64, 64, 3, 3) < 0.05)
    set_mask(tall, "weight", torch.rand(64, 64, 3) < 0.05)
    model = nn.ModuleDict({"wide": wide, "narrow": narrow, "conv": conv, "tall": tall})
    sparsify.accelerate(model)
    report = {decision.fqn: decision for decision in sparsify.acceleration_report(model)}
    assert report["wide"].sparse and not report["narrow"].sparse
    assert report["conv"].sparse and not report["tall"].sparse
    assert "times the dense speed" in report["narrow"].reason and "nn.Linear" in report["tall"].reason
    assert report["conv"].kind == "Conv2d" and type(tall) is nn.Conv1d
    set_mask(conv, "weight", torch.rand(64, 64, 3, 3) < 0.7)
    sparsify.accelerate(model)
    assert type(conv) is nn.Conv2d


def test_the_estimate_falls_with_density_and_rises_with_size():
    assert estimated_gain(3072, 768, 0.05) > estimated_gain(3072, 768, 0.1) > estimated_gain(3072, 768, 0.5)
    assert estimated_gain(3072, 768, 0.1) > estimated_gain(64, 64, 0.1)
    assert estimated_gain(3072, 768, 1.0) < 1
    assert estimated_gain(192, 768, 0.1, 4096) > estimated_gain(192, 768, 0.1, 16)


def test_the_estimate_of_a_convolution_knows_what_was_measured():
    wide, narrow = (256, 256, 3, 3), (8, 8, 3, 3)
    assert 2.5 < estimated_conv_gain(wide, 0.1) < 4 < estimated_conv_gain(wide, 0.05) < 6
    assert estimated_conv_gain(narrow, 0.1) < LEAST_GAIN < estimated_conv_gain((64, 64, 3, 3), 0.1)
    assert estimated_conv_gain(wide, 0.1, (2, 2)) < estimated_conv_gain(wide, 0.1)
    assert estimated_conv_gain(wide, 1.0) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_sparsity": 1.5}, "min_sparsity"),
        ({"rows": 0}, "rows"),
        ({"layers": ["7"]}, "fits no masked layer"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        sparsify.accelerate(masked(), **arguments)


def test_a_model_without_masks_is_refused():
    with pytest.raises(UserError, match="mask"):
        sparsify.accelerate(nn.Linear(4, 4))


def test_other_types_stay_or_run_dense():
    model = masked().double()
    sparsify.accelerate(model)
    assert "float32" in sparsify.acceleration_report(model)[0].reason
    model = sparsify.accelerate(masked(), min_sparsity=0.0)
    x = torch.randn(5, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    expected = model(x)
    torch.testing.assert_close(model.double()(x.double()).float(), expected, rtol=1e-4, atol=1e-5)


def test_a_copy_is_accelerated_too_and_trains_apart():
    model = sparsify.accelerate(masked(), min_sparsity=0.0)
    twin = copy.deepcopy(model)
    assert type(twin[0]) is SparseLinear
    before = model[0].weight.clone()
    train(twin, METHODS["rigl"], steps=12)
    assert torch.equal(model[0].weight, before) and not torch.equal(twin[0].weight, before)


def test_transform_save_load_and_export_while_accelerated(tmp_path):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(4, 32)
    model = sparsify.transform(dense, (x,), family="masked", sparsity=0.8)
    expected = model(x)
    sparsify.accelerate(model, min_sparsity=0.5)
    assert any(decision.sparse for decision in sparsify.acceleration_report(model))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    sparsify.save(model, tmp_path / "model.pt2")
    sparsify.export(model, tmp_path / "model.onnx")
    assert any(isinstance(module, SparseLinear) for module in model.modules())
    loaded = sparsify.load(tmp_path / "model.pt2")
    assert not any(isinstance(module, SparseLinear) for module in loaded.modules())
    torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-6)
    sparsify.accelerate(loaded, min_sparsity=0.5)
    loaded(x).sum().backward()
    for entry in masked_parameters(loaded).values():
        assert not entry.param.grad[~entry.mask].any()


@pytest.mark.parametrize("compiled", [False, True])
def test_dense_gradients_are_there_for_methods_that_ask(compiled):
    model = sparsify.accelerate(masked(), min_sparsity=0.0)
    run = torch.compile(model, backend="aot_eager") if compiled else model
    x = torch.randn(32, 24)
    run(x).square().sum().backward()
    layer = model[0]
    before = layer.weight.grad.clone()
    collected = []
    gradient_mask(layer.weight).collector = lambda grad: collected.append(grad.clone())
    model.zero_grad()
    run(x).square().sum().backward()
    assert collected[0][~layer.weight_mask].count_nonzero() > 100
    torch.testing.assert_close(collected[0] * layer.weight_mask, before, rtol=1e-3, atol=1e-3)
    assert not layer.weight.grad[~layer.weight_mask].any()
