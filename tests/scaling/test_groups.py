from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sparsify.errors import UserError
from sparsify.scaling import Scaling, TensorFacts, param_groups, scaling_table


@dataclass
class Record:
    scaling: Scaling | None


class Tied(nn.Module):
    """Two hidden layers, one of them tied under two names, and a frozen one."""

    def __init__(self, parameterization: str = "supar"):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.frozen = nn.Linear(8, 8, bias=False).requires_grad_(False)
        self.alias = nn.Linear(8, 8, bias=False)
        self.alias.weight = self.first.weight
        facts = [
            TensorFacts("alias.weight", "hidden", 4, 8, 4, 8, density=0.25),
            TensorFacts("first.bias", "bias", 1, 1, 4, 8),
            TensorFacts("second.weight", "hidden", 4, 8, 4, 8),
        ]
        self.sparsify = Record(scaling_table(facts, parameterization=parameterization))


def by_name(groups):
    return {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_trainable_parameter_is_in_exactly_one_group(optimizer):
    model = Tied()
    groups = param_groups(model, lr=0.1, weight_decay=0.01, optimizer=optimizer)
    grouped = [id(param) for group in groups for param in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in model.parameters() if p.requires_grad})
    named = dict(model.named_parameters())
    for group in groups:
        assert [id(named[name]) for name in group["names"]] == [id(param) for param in group["params"]]
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.1 * 0.01)
    torch.optim.AdamW(groups)


def test_factors_are_those_of_the_table_also_under_another_name():
    found = by_name(param_groups(Tied(), lr=0.1, weight_decay=0.2))
    assert found == {
        "first.weight": pytest.approx((0.2, 0.1)),
        "first.bias": pytest.approx((0.1, 0.2)),
        "second.weight": pytest.approx((0.05, 0.4)),
    }
    found = by_name(param_groups(Tied(), lr=0.1, optimizer="sgd"))
    assert {name: lr for name, (lr, _) in found.items()} == pytest.approx(
        {"first.weight": 0.4, "first.bias": 0.2, "second.weight": 0.1}
    )


def test_a_plain_model_is_one_group_like_its_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    (group,) = param_groups(model, lr=0.3, weight_decay=0.1, parameterization="sp")
    assert group["params"] == list(model.parameters())
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)


def test_a_data_parallel_wrapper_is_looked_through():
    model = Tied()
    wrapper = nn.Module()
    wrapper.module = model
    assert by_name(param_groups(wrapper, lr=0.1)) == {
        f"module.{name}": value for name, value in by_name(param_groups(model, lr=0.1)).items()
    }


def test_what_contradicts_the_stored_scaling_is_refused():
    model = Tied()
    with pytest.raises(UserError, match="made with parameterization 'supar', 'mup' was asked for"):
        param_groups(model, lr=0.1, parameterization="mup")
    param_groups(model, lr=0.1, parameterization="supar")
    with pytest.raises(UserError, match="parameterization 'sp'"):
        param_groups(nn.Linear(2, 2), lr=0.1, parameterization="supar")
    with pytest.raises(UserError, match="not one of adamw, sgd"):
        param_groups(model, lr=0.1, optimizer="lion")
    model.extra = nn.Linear(8, 2)
    with pytest.raises(UserError, match=r"'extra\.weight'"):
        param_groups(model, lr=0.1)


def test_epsilon_follows_the_gradients_and_every_rule_can_be_switched_off():
    model = Tied()
    eps = {name: group["eps"] for group in param_groups(model, lr=0.1, eps=1e-6) for name in group["names"]}
    assert eps == pytest.approx({"first.weight": 5e-7, "first.bias": 5e-7, "second.weight": 5e-7})
    groups = param_groups(model, lr=0.1, weight_decay=0.2, scale_weight_decay=False, scale_eps=False)
    assert {(group["weight_decay"], group["eps"]) for group in groups} == {(0.2, 1e-8)}
    assert len({group["lr"] for group in groups}) == 3
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.1, eps=1e-6), lr=0.1)
    assert {group["eps"] for group in optimizer.param_groups} == {5e-7}
    assert all("eps" not in group for group in param_groups(model, lr=0.1, optimizer="sgd"))


def test_asking_twice_changes_nothing():
    model = Tied()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    first, second = (param_groups(model, lr=0.1, weight_decay=0.3) for _ in range(2))
    assert first == second
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
