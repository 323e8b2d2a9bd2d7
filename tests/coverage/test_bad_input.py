"""What the tool cannot take is said: what, where, why, and what to do next."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify import api
from sparsify.errors import BudgetError, InvalidPlanError, UnsupportedModelError, UserError
from sparsify.planning import Plan

X = torch.randn(4, 8)


class Net(nn.Module):
    """Two hidden layers around something that makes trouble."""

    def __init__(self, trouble: Callable[[Tensor], Tensor] | nn.Module, width: int = 16) -> None:
        super().__init__()
        self.inward, self.fc1 = nn.Linear(8, width), nn.Linear(width, 32)
        self.trouble = trouble
        self.fc2, self.fc3, self.out = nn.Linear(32, 24), nn.Linear(24, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trouble(F.relu(self.inward(x)))
        return self.out(F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))))


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Places(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = torch.nonzero(x[:, 0] > -1e9)[:, 0]
        return x[rows]


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such thing")


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x + self.seen


class ComplexMix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 16, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.to(torch.complex64)).real


class IntegerMix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-8, 8, (16, 16)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear((x * 16).round().long(), self.weight).float() / 256


@torch.library.custom_op("sparsify_tests::odd", mutates_args=())
def odd(x: Tensor) -> Tensor:
    """An operator that nobody knows."""
    return x - x.flip(-1)


@odd.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def transform(model: nn.Module, **options: Any) -> torch.fx.GraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return api.transform(model.eval(), (X,), **options)


def refusals(model: nn.Module, **options: Any) -> dict[str, tuple[str, str]]:
    made = transform(model, **options)
    assert made(X).shape == (4, 3)
    return {refusal.fqn: (refusal.rule, refusal.reason) for refusal in made.sparsify.plan.refusals}


def test_a_branch_on_values_names_the_module_the_line_and_a_way_out(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UnsupportedModelError, match="at trouble") as caught:
        transform(Net(Branch()))
    said = str(caught.value)
    assert "test_bad_input.py:" in said
    assert "branches on the value of a tensor" in said and "torch.where" in said
    assert capfd.readouterr() == ("", "")


def test_a_model_that_fails_on_its_example_says_so() -> None:
    with pytest.raises(UserError, match="fails on the example itself at trouble") as caught:
        transform(Net(Raising()))
    assert "no such thing" in str(caught.value) and "example must be" in str(caught.value)


def test_a_model_that_changes_its_buffers_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match=r"trouble\.seen") as caught:
        transform(Net(Remembering()))
    assert "return the" in str(caught.value)


def test_shapes_that_depend_on_data_keep_the_widths_and_say_why() -> None:
    model = Net(Places())
    made = transform(model)
    assert made(X).shape == (4, 3)
    pinned = {group.id: group.pinned for group in made.sparsify.plan.groups}
    assert "select in trouble reads one place in it" in str(pinned["inward.weight[0]"])
    assert pinned["fc2.weight[0]"] is None
    assert made.sparsify.plan.flops.ratio == pytest.approx(1, abs=1e-3)


def test_sizes_from_values_need_real_weights() -> None:
    model = Net(Places()).to("meta")
    with pytest.raises(UnsupportedModelError, match=r"trouble\) makes a size from values") as caught:
        api.plan(api.trace(model, (X.to("meta"),)))
    assert "real weights" in str(caught.value)


def test_complex_weights_are_refused_by_name() -> None:
    rule, reason = refusals(Net(ComplexMix()))["trouble.mix"]
    assert rule == "dtype"
    assert "real floating-point" in reason


def test_integer_weights_are_refused_by_name() -> None:
    rule, reason = refusals(Net(IntegerMix()))["trouble"]
    assert rule == "dtype"
    assert "real floating-point" in reason


def test_an_unknown_operator_is_refused_by_name_and_the_rest_transformed() -> None:
    found = refusals(Net(odd))
    assert found[""][0] == "unknown-operator"
    assert "sparsify_tests.odd" in found[""][1]
    assert "fc2" not in found and "fc3" not in found


@pytest.mark.parametrize("family", ["wide", "parallel", "factorized"])
def test_an_infeasible_width_names_the_largest_feasible_one(family: str) -> None:
    with pytest.raises(BudgetError, match="largest feasible width") as caught:
        transform(Net(nn.Identity()), family=family, width=1e6)
    largest = caught.value.largest_width
    assert largest is not None and 1 <= largest < 1e6
    assert f"{largest:g}" in str(caught.value)
    if largest > 1:
        made = transform(Net(nn.Identity()), family=family, width=largest)
        assert made.sparsify.plan.flops.ratio == pytest.approx(1, abs=0.01)


def plan_json(width: int = 16) -> dict[str, Any]:
    made = api.plan(api.trace(Net(nn.Identity(), width).eval(), (X,)))
    return json.loads(made.to_json())


def test_a_plan_of_another_model_is_refused() -> None:
    other = Plan.from_json(plan_json(width=20))
    with pytest.raises(InvalidPlanError, match="model") as caught:
        transform(Net(nn.Identity()), plan=other)
    assert "plan" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("version", 99, "reads plan version 2, found 99; make the plan anew"),
        ("format", "something", "key 'format': expected 'sparsify.plan', found 'something'"),
        ("layers", [], "layers"),
        ("groups", [{"id": "?"}], "groups"),
    ],
)
def test_a_damaged_plan_names_the_key(key: str, value: Any, reason: str) -> None:
    with pytest.raises(InvalidPlanError) as caught:
        transform(Net(nn.Identity()), plan=Plan.from_json(plan_json() | {key: value}))
    assert reason in str(caught.value)


def test_an_option_that_names_no_layer_shows_near_ones() -> None:
    with pytest.raises(UserError, match="no layer matches") as caught:
        transform(Net(nn.Identity()), keep_dense="fc11")
    assert "fc1" in str(caught.value)
