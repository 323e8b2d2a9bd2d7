"""The public verbs together, as a user calls them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import sparsify
from sparsify import runtime
from sparsify.archive import wrap
from sparsify.errors import BudgetError, InvalidPlanError, UserError
from tests.models import ResNet


class RandomDepth(nn.Module):
    """Skips its layer at random in training, which a graph traced in eval mode does not show."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 32)
        self.second = nn.Linear(32, 32)

    def forward(self, x):
        x = torch.relu(self.first(x))
        if self.training and torch.rand(()).item() < 0.5:
            return x
        return x + self.second(x)


def test_the_main_road(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10))
    before = copy.deepcopy(model.state_dict())
    sparse = sparsify.transform(model, (torch.zeros(2, 64),), sparsity=0.9)
    assert abs(sparse.sparsify.plan.flops.ratio - 1) < 1e-3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    optimizer = torch.optim.AdamW(sparsify.param_groups(sparse, lr=1e-3))
    sparsify.dst.RigL(sparse, optimizer, total_steps=8, update_every=2)
    for _ in range(8):
        sparse(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    sparsify.save(sparse, tmp_path / "sparse.pt2")
    loaded = sparsify.load(tmp_path / "sparse.pt2")
    x = torch.randn(7, 64)
    assert torch.equal(loaded(x), sparse.eval()(x))
    report = sparsify.export(loaded, tmp_path / "sparse.onnx")
    assert report.max_abs_error < 1e-5
    session = runtime.Session(tmp_path / "sparse.onnx", threads=1)
    (got,) = session.run(None, {session.inputs[0].name: x.numpy()})
    np.testing.assert_allclose(got, sparse(x).detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_width_that_no_density_pays_for_names_the_largest(tmp_path):
    traced = sparsify.trace(ResNet(), (torch.zeros(2, 1, 16, 16),))
    with pytest.raises(BudgetError) as stopped:
        sparsify.plan(traced, width=200.0)
    largest = stopped.value.largest_width
    assert largest is not None and f"{largest:.2f}"[:3] in str(stopped.value)
    assert abs(sparsify.plan(traced, width=0.98 * largest).flops.ratio - 1) < 1e-3


def network():
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def test_a_plan_decides_alone():
    traced = sparsify.trace(network(), (torch.zeros(2, 8),))
    plan = sparsify.plan(traced, family="masked", sparsity=0.5)
    with pytest.raises(UserError, match="sparsity"):
        sparsify.transform(traced, plan=plan, sparsity=0.9)


def test_a_plan_of_another_model_is_refused():
    plan = sparsify.plan(sparsify.trace(network(), (torch.zeros(2, 8),)), sparsity=0.5)
    other = sparsify.trace(ResNet(), (torch.zeros(2, 1, 16, 16),))
    with pytest.raises(InvalidPlanError):
        sparsify.transform(other, plan=plan)


def test_a_first_or_last_layer_is_masked_where_it_is_named_in_full():
    args = (torch.zeros(2, 8),)
    by_pattern = sparsify.transform(network(), args, family="masked", sparsity=0.5, only=("[024]",))
    assert {layer.fqn for layer in by_pattern.sparsify.plan.layers if layer.masked} == {"2"}
    options = {"family": "masked", "sparsity": 0.5, "only": ("0", "2", "4")}
    for init in ("scratch", "preserve"):
        model = sparsify.transform(network(), args, init=init, **options)
        kept = {name: int(model.get_submodule(name).weight.count_nonzero()) for name in "024"}
        assert kept == {"0": 128, "2": 512, "4": 64}


@pytest.mark.parametrize("transformed", [False, True])
def test_what_training_would_change_stops_finetune_even_after_a_reload(tmp_path, transformed):
    traced = sparsify.trace(RandomDepth(), (torch.zeros(2, 16),))
    assert any(refusal.rule == "training-mode" for refusal in traced.refusals)
    sparsify.save(wrap(traced), tmp_path / "dense.pt2")
    model = sparsify.load(tmp_path / "dense.pt2")
    if transformed:
        options = {"family": "masked", "sparsity": 0.5, "only": ("first",)}
        model = sparsify.transform(model, (torch.zeros(2, 16),), **options)
    with pytest.raises(UserError, match="does not train as it did"):
        sparsify.finetune(
            model, "digits", method="static" if transformed else "dense", steps=1, progress=False
        )


def test_a_rewritten_model_is_not_rewritten_again(tmp_path):
    args = (torch.zeros(2, 8),)
    sparse = sparsify.transform(network(), args, sparsity=0.5)
    sparsify.save(sparse, tmp_path / "sparse.pt2")
    for model in (sparse, sparsify.load(tmp_path / "sparse.pt2")):
        with pytest.raises(UserError, match="wide model already"):
            sparsify.transform(model, args, sparsity=0.5)


def test_data_that_does_not_fit_is_named_before_training(tmp_path):
    inner = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    model = sparsify.transform(inner, (torch.zeros(2, 64),), sparsity=0.5)
    with pytest.raises(UserError, match=r"does not run on this data.*\(2, 1, 8, 8\) float32"):
        sparsify.finetune(model, "digits", output=tmp_path / "out.pt2", steps=1, progress=False)
    assert not (tmp_path / "out.pt2").exists()


def test_nan_weights_are_named():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"2\.weight"):
        sparsify.transform(model, (torch.zeros(2, 8),))
