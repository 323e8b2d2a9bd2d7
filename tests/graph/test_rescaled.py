"""Rescaled sizes are those that a run on symbolic sizes gives, and what cannot be rescaled is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import Node

from sparsify.graph import verify
from sparsify.graph.rescaled import NotRescalableError, Rescaler
from sparsify.graph.verify import propagate
from tests.graph.widening import facts_of, grown, model_facts, widened
from tests.models import MODELS


def recorded(node: Node) -> Any:
    value = node.meta.get("val")
    return (str(tuple(value.shape)), value.dtype) if isinstance(value, torch.Tensor) else str(value)


def symbolic_run(module: torch.fx.GraphModule) -> None:
    """The slow way: every operator on the recorded symbolic inputs."""
    propagate(module, [node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder"])


@pytest.mark.parametrize("name", sorted(MODELS)[::2])
def test_rescaled_sizes_are_the_symbolic_ones(name: str) -> None:
    traced, found = model_facts(name)
    wide = widened(traced, found, grown(found))
    before = {node: recorded(node) for node in wide.graph.nodes}
    propagate(wide)
    fast = {node: recorded(node) for node in wide.graph.nodes}
    symbolic_run(wide)
    assert fast == {node: recorded(node) for node in wide.graph.nodes}
    assert fast != before


def test_rescaling_runs_nothing_on_symbolic_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, found = model_facts("gpt2")
    wide = widened(traced, found, grown(found))

    def unexpected(*arguments: Any) -> None:
        raise AssertionError("a symbolic run")

    monkeypatch.setattr(verify.Fakes, "active", unexpected)
    propagate(wide)


def test_a_node_without_a_recorded_value_gets_one() -> None:
    traced, _ = facts_of(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(5, 3))
    graph = traced.module.graph
    relu = next(node for node in graph.nodes if node.op == "call_function")
    with graph.inserting_after(relu):
        added = graph.call_function(torch.ops.aten.neg.default, (relu,))
    propagate(traced.module)
    assert recorded(added) == recorded(relu)
    assert isinstance(added.meta["val"].shape[0], torch.SymInt)


def test_a_sum_of_sizes_is_not_rescaled() -> None:
    traced, _ = facts_of(Joined(), torch.randn(5, 3))
    joined = next(node for node in traced.module.graph.nodes if "cat" in node.name)
    mode = joined.meta["val"].fake_mode
    assert Rescaler(mode).refresh(joined.meta, torch.empty(joined.meta["val"].shape[0].node.hint, 3))
    with pytest.raises(NotRescalableError):
        Rescaler(mode)._size(joined.meta["val"].shape[0], 1000)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.table = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.first(x), self.table])
