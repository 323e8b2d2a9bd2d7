"""Propagation refreshes shapes and names what fails; the check at two widths catches a wrong rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node

from sparsify.errors import UnsupportedModelError
from sparsify.graph import couplings
from sparsify.graph.rules_elementwise import same
from sparsify.graph.verify import propagate
from tests.graph.widening import facts_of, grown, model_facts, widened
from tests.models import MODELS


def shape_of(node: Node) -> tuple[Any, ...]:
    return tuple(getattr(node.meta.get("val"), "shape", ()))


@pytest.mark.parametrize("name", MODELS)
def test_propagation_reproduces_the_trace(name: str) -> None:
    module = model_facts(name)[0].module
    before = {node: str(shape_of(node)) for node in module.graph.nodes}
    propagate(module)
    after = {node: str(shape_of(node)) for node in module.graph.nodes}
    assert after == before
    assert any(isinstance(size, torch.SymInt) for node in module.graph.nodes for size in shape_of(node))


def test_propagation_sees_new_widths() -> None:
    traced, found = model_facts("gpt2")
    wide = widened(traced, found, grown(found))
    propagate(wide)
    shapes = {node.name: node.meta["val"].shape for node in wide.graph.nodes if node.op == "call_module"}
    name = "transformer_h_0_mlp_c_fc"
    assert shapes[name][-1] == wide.get_submodule("transformer.h.0.mlp.c_fc").weight.shape[0] != 128
    assert isinstance(shapes[name][0], torch.SymInt)


def test_a_misfit_is_named() -> None:
    traced, _ = facts_of(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(5, 3))
    traced.module.get_submodule("2").weight = nn.Parameter(torch.randn(4, 9))
    with pytest.raises(UnsupportedModelError, match=r"Linear \(node .*in 2\)"):
        propagate(traced.module)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.d(x + self.c(self.b(x)))


def test_a_missed_coupling_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(couplings.RULES, "add", same)
    _, found = facts_of(Residual(), torch.randn(2, 3))
    assert [refusal.rule for refusal in found.refusals] == ["two-widths"]
    assert "add" in found.refusals[0].reason
    pinned = {group.id: group.pinned for group in found.groups}
    assert "add" in str(pinned["a.weight[0]"])
    assert "add" in str(pinned["c.weight[0]"])
    assert pinned["b.weight[0]"] is None


def test_a_wrong_shape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(call, dimensions):
        shape = dimensions.tensor(call.node.args[0])
        return (shape[0], dimensions.widths.fresh(8))

    monkeypatch.setitem(couplings.RULES, "relu", swapped)
    _, found = facts_of(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(5, 3))
    assert [refusal.rule for refusal in found.refusals] == ["two-widths"]
    assert all(group.pinned for group in found.groups)
