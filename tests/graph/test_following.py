"""What follows a layer: the norm and the activation that alone read its output."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.graph.facts import facts
from sparsify.graph.following import evaluate
from sparsify.graph.trace import trace


class _Conv(nn.Module):
    def __init__(self, tail: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.tail = tail
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tail(self.conv(self.stem(x).relu())))


class _Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _found(tail: nn.Module):
    traced = trace(_Conv(tail).eval(), (torch.randn(2, 3, 12, 12),))
    return traced.module, next(layer for layer in facts(traced).layers if layer.fqn == "conv").follows


@pytest.mark.parametrize(
    ("tail", "label"),
    [
        (nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), "batch_norm+relu"),
        (nn.BatchNorm2d(8), "batch_norm"),
        (nn.GroupNorm(2, 8), "group_norm"),
        (nn.GELU(), "gelu"),
        (nn.Hardswish(), "hardswish"),
        (_Function(lambda x: x * torch.sigmoid(x)), "activation"),
        (_Function(lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))), "activation"),
        (_Function(lambda x: F.relu(2 * x + 1)), "activation"),
        (nn.Identity(), "none"),
        (_Function(lambda x: 2 * x + 1), "none"),
        (_Function(lambda x: x + F.relu(x)), "activation"),
        (_Function(lambda x: F.relu(x) * x.mean()), "none"),
        (_Function(lambda x: F.relu(x.transpose(2, 3))), "none"),
        (_Function(lambda x: torch.softmax(x, 1)), "none"),
    ],
)
def test_label_names_what_reads_the_output(tail: nn.Module, label: str) -> None:
    _, found = _found(tail)
    assert found.label == label
    assert (found.norm is not None) == ("norm" in label)


def test_the_nodes_of_an_activation_compute_it() -> None:
    def function(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * x**3)))

    module, found = _found(_Function(function))
    x = torch.linspace(-3, 3, 21, dtype=torch.float64)
    assert len(found.activation) > 3
    torch.testing.assert_close(evaluate(module, found.activation, x), function(x), rtol=1e-12, atol=1e-12)


def test_a_layer_called_twice_has_what_follows_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self, second) -> None:
            super().__init__()
            self.stem, self.fc, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.second = second

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.fc(F.relu(self.fc(self.stem(x))))))

    for second, label in ((F.relu, "relu"), (F.gelu, "none")):
        layers = facts(trace(Twice(second).eval(), (torch.randn(3, 4),))).layers
        assert next(layer for layer in layers if layer.fqn == "fc").follows.label == label


def test_an_output_that_something_else_reads_too_has_nothing_of_its_own() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.fc, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(self.stem(x))
            return self.head(F.relu(y)), y

    layers = facts(trace(Shared().eval(), (torch.randn(3, 4),))).layers
    assert next(layer for layer in layers if layer.fqn == "fc").follows.label == "none"
