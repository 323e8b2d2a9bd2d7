from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import sparsify
from sparsify.dst import SRigL
from sparsify.dst.srigl import fan_in, living
from sparsify.errors import UserError
from sparsify.masks import set_mask


class Rows(nn.Module):
    """y = Σ (W ∘ x) for a matrix whose gradients the test chooses, and a last layer of one row."""

    def __init__(self, weight, mask):
        super().__init__()
        self.weight = nn.Parameter(weight * mask)
        set_mask(self, "weight", mask)
        self.last = nn.Linear(2, 1, bias=False)
        set_mask(self.last, "weight", torch.tensor([[True, False]]))

    def forward(self, x):
        return (self.weight * x).sum() + self.last(torch.ones(2)).sum()


def step(model, optimizer, gradient):
    optimizer.zero_grad()
    model(gradient).backward()
    optimizer.step()


WEIGHT = torch.tensor(
    [[9.0, 8.0, 0.0, 0.0], [0.2, 0.1, 0.0, 0.0], [7.0, 6.0, 0.0, 0.0], [5.0, 4.0, 0.0, 0.0]]
)
MASK = torch.tensor([[1, 1, 0, 0]] * 4, dtype=torch.bool)
GRADIENT = torch.tensor(
    [[0.0, 0.0, 5.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 1.0, 2.0]]
)


def srigl(model, **options):
    optimizer = optim.SGD(model.parameters(), lr=1e-9, momentum=0.9)
    fixed = {"total_steps": 100, "update_every": 1, "drop_fraction": 0.5, "stop_fraction": 1.0, "gamma": 0.5}
    return optimizer, SRigL(model, optimizer, **{"pattern": "fan-in", **fixed, **options})


def test_a_neuron_without_salient_weights_goes_and_the_others_share_its_budget():
    """B = 8, n = 4, nnz 8: the int(8 · .3) = 2 smallest |W| go, and the 2 largest |G| count as salient.

    |W| keeps 9 8 / – / 7 6 / 5 4; |G| marks (0, 2) and (2, 2). Salient per row: 3, 0, 3, 2; τ = int(.5 · 2).
    Row 1 goes; k' = 8 // 3 = 2, so that rows 0, 2 and 3 keep their two and 6 weights are left of 8.
    """
    model = Rows(WEIGHT, MASK)
    optimizer, algorithm = srigl(model, drop_fraction=0.3)
    step(model, optimizer, GRADIENT)
    expected = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    assert torch.equal(model.weight_mask, expected)
    assert algorithm.ablated == {"weight": 1, "last.weight": 0}
    assert algorithm.budgets == {"weight": 8, "last.weight": 1}


def test_a_freed_budget_goes_to_the_largest_gradients_of_the_living_rows():
    """Four go, and rows 1 and 3 with them. B = 8 over 2 living rows: k' = 4, all inputs."""
    weight = torch.tensor([[9.0, 8.0, 0, 0], [0.2, 0.1, 0, 0], [7.0, 6.0, 0, 0], [0.05, 0.04, 0, 0]])
    model = Rows(weight, MASK)
    optimizer, algorithm = srigl(model, drop_fraction=0.52)
    step(model, optimizer, GRADIENT * torch.tensor([1.0, 0.0, 1.0, 0.0])[:, None])
    assert model.weight_mask.sum(1).tolist() == [4, 0, 4, 0]
    assert (model.weight[0] != 0).tolist() == [True, True, False, False], "grown weights start at zero"
    assert algorithm.density == 9 / 18


def test_a_neuron_comes_back_when_its_gradients_are_salient():
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
    model = Rows(torch.arange(16.0).reshape(4, 4) + 1, mask)
    optimizer, algorithm = srigl(model, gamma=0.5)
    assert algorithm.ablated["weight"] == 2
    gradient = torch.zeros(4, 4)
    gradient[1, 2], gradient[1, 3], gradient[2, 0] = 9.0, 8.0, 7.0
    step(model, optimizer, gradient)
    # int(8 · .4999) = 3 are dropped, row 0 keeps 1 (τ = 1) and row 2 all 4; three rows share B = 8.
    assert model.weight_mask.sum(1).tolist() == [2, 2, 2, 0]
    assert model.weight_mask[1].tolist() == [False, False, True, True]
    assert model.weight_mask[2].tolist() == [False, False, True, True], "a crowded row keeps its largest"
    assert (model.weight[1] == 0).all()
    step(model, optimizer, gradient)
    assert (model.weight[1, 2:] != 0).all(), "and learns"


def test_the_output_layer_is_never_ablated_and_ablation_can_be_off():
    model = Rows(WEIGHT, MASK)
    model.last = nn.Linear(4, 4, bias=False)
    model.forward = lambda x: (model.last.weight * x).sum() + model.weight.sum()
    with torch.no_grad():
        model.last.weight.copy_(WEIGHT)
    set_mask(model.last, "weight", MASK)
    optimizer, _ = srigl(model)
    step(model, optimizer, GRADIENT)
    assert model.last.weight_mask.sum(1).tolist() == [2, 2, 2, 2]
    model = Rows(WEIGHT, MASK)
    optimizer, algorithm = srigl(model, ablation=False)
    step(model, optimizer, GRADIENT)
    assert model.weight_mask.sum(1).tolist() == [2, 2, 2, 2]
    assert algorithm.ablated["weight"] == 0


def test_enough_neurons_stay_for_the_budget():
    salient = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    assert living(salient, budget=9, gamma=1.0).tolist() == [True, True, True, False], (
        "9 // 3 = 3 rows at least"
    )
    assert living(salient, budget=8, gamma=1.0).tolist() == [True, True, False, False]
    assert living(salient, budget=4, gamma=0.0).tolist() == [True, True, True, False], "τ is at least 1"
    assert fan_in(torch.tensor([True, False]), inputs=3, budget=5) == 3
    assert fan_in(torch.tensor([True, True]), inputs=9, budget=5) == 2


def test_gamma_by_kind_by_name_and_by_architecture():
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 4)
    )
    transformer = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))

    def gammas(model, gamma):
        for layer in model:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                set_mask(layer, "weight", torch.ones_like(layer.weight, dtype=torch.bool))
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        algorithm = SRigL(model, optimizer, total_steps=9, gamma=gamma, pattern="fan-in")
        algorithm.remove()
        return list(algorithm.gammas.values())

    assert gammas(conv, None) == [0.3, 0.3, 0.3]
    assert gammas(transformer, None) == [0.95, 0.95]
    assert gammas(conv, 0.5) == [0.5, 0.5, 0.5]
    assert gammas(conv, {"conv": 0.1, "3.*": 0.7}) == [0.1, 0.7, 0.3]
    with pytest.raises(UserError, match="gamma must lie"):
        gammas(conv, 1.5)


def test_other_patterns_are_refused_with_the_reason():
    model = Rows(WEIGHT, MASK)
    with pytest.raises(UserError, match=r"SRigL trains masks of constant fan-in.*pattern unstructured.*RigL"):
        srigl(model, pattern=None)


def test_a_transformed_model_brings_pattern_budget_and_output_layer_along():
    torch.manual_seed(0)
    layers = nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8)
    model = sparsify.transform(
        nn.Sequential(*layers),
        (torch.zeros(2, 16),),
        family="masked",
        sparsity=0.75,
        pattern="fan-in",
        parameterization="sp",
    )
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    algorithm = SRigL(model, optimizer, total_steps=40, update_every=2, drop_fraction=0.5, gamma=0.9)
    readout = next(layer for layer in model.sparsify.plan.layers if layer.role == "readout")
    assert algorithm.outputs <= {tensor.fqn for tensor in readout.tensors}
    planned = {t.fqn: t.nnz for layer in model.sparsify.plan.layers for t in layer.tensors if t.masked}
    assert algorithm.budgets == planned
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        optimizer.zero_grad()
        x = torch.randn(16, 16, generator=generator)
        (model(x) - x[:, :8].relu()).square().mean().backward()
        optimizer.step()
    ablated = {fqn for fqn, count in algorithm.ablated.items() if count}
    assert ablated and not ablated & algorithm.outputs
    sparsify.masks.check_patterns(model)
    for fqn, count in algorithm.counts.items():
        rows = algorithm.entries[fqn].mask.shape[0]
        assert planned[fqn] - rows < count <= planned[fqn]
    if algorithm.flops is not None:
        assert algorithm.flops <= model.sparsify.plan.flops.sparse
