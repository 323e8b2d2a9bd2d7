"""The base class runs requires, run and ensures, the last on the result."""

import operator

import pytest
import torch
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.passes.contract import Pass, PassResult
from sparsify.passes.dialect import check_dialect


class Doubling(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return operator.add(x, x)


class Recorder(Pass):
    name = "recorder"

    def __init__(self, result: torch.fx.GraphModule) -> None:
        self.result, self.calls = result, []

    def requires(self, graph, plan):
        self.calls.append(("requires", graph))

    def run(self, graph, plan):
        return PassResult(self.result, 1)

    def ensures(self, graph, plan):
        self.calls.append(("ensures", graph))


def test_ensures_sees_the_result_and_requires_the_input():
    given, made = (torch.fx.symbolic_trace(Doubling()) for _ in range(2))
    recorder = Recorder(made)
    assert recorder(given, None).graph is made
    assert recorder.calls == [("requires", given), ("ensures", made)]


def test_a_result_outside_the_dialect_is_refused():
    foreign = torch.fx.symbolic_trace(Doubling())
    node = next(node for node in foreign.graph.nodes if node.op == "call_function")
    node.target = torch.nn.functional.relu
    node.args = (node.args[0],)
    with pytest.raises(SparsifyError, match="neither an operator overload"):
        Recorder(foreign)(foreign, None)
    node.op, node.target = "call_method", "relu"
    with pytest.raises(SparsifyError, match="call_method"):
        check_dialect(foreign)
