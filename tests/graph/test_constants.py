"""What is known of every node whatever the inputs are; and which channels are one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsify.graph.channel_rules import follow
from sparsify.graph.constant_rules import constants
from sparsify.graph.constants import Known
from sparsify.graph.extents import Extents
from sparsify.graph.facts import facts
from sparsify.graph.trace import trace
from tests.models import MODELS, randomise_statistics


class Walked:
    """A traced model with known values and channels of its nodes."""

    def __init__(self, model: nn.Module, *args, **kwargs) -> None:
        self.traced = trace(model.eval(), args, kwargs)
        found = facts(self.traced)
        self.extents = Extents(self.traced, found)
        self.known = constants(self.traced.module, self.extents)
        self.channels = follow(self.traced.module, found, self.extents)

    @property
    def nodes(self):
        return [node for node in self.traced.module.graph.nodes if node.op != "output"]

    def last(self):
        return self.nodes[-1]


def holds(walked: Walked) -> int:
    """Compares known values with what the graph computes on random inputs; returns how many there were."""
    compared = 0
    interpreter = torch.fx.Interpreter(walked.traced.module)
    for seed in range(2):
        torch.manual_seed(seed)
        inputs = [
            torch.randn_like(x) if x.is_floating_point() else x
            for x in (*walked.traced.args, *walked.traced.kwargs.values())
        ]
        environment = {}

        class Recording(torch.fx.Interpreter):
            def run_node(self, n, environment=environment):
                environment[n] = super().run_node(n)
                return environment[n]

        with torch.no_grad():
            Recording(interpreter.module).run(*inputs, enable_io_processing=False)
        for node in walked.nodes:
            computed = environment[node]
            if isinstance(computed, torch.Tensor) and node.op != "get_attr" and walked.known.of(node).any:
                known = walked.known.of(node)
                mask = known.mask.expand(computed.shape)
                value = known.value.expand(computed.shape)
                torch.testing.assert_close(computed[mask], value[mask].to(computed.dtype))
                compared += int(mask.sum())
    return compared


def edited(model: nn.Module, seed: int = 0) -> nn.Module:
    """Zeroes some rows of every layer and some gains of every norm."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, torch.Tensor):
                weight[torch.rand(weight.shape[0], generator=generator) < 0.4] = 0
    return model


@pytest.mark.parametrize("name", ["mlp", "resnet", "flatten_cnn"])
def test_known_values_are_what_the_graph_computes(name):
    entry = MODELS[name]
    args, kwargs = entry.example(3, 12)
    assert holds(Walked(edited(entry.model()), *args, **kwargs)) > 300


class Operators(nn.Module):
    """Many operators behind a layer some of whose channels are constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.mixed = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, groups=2)
        self.padded, self.slope = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.PReLU(8)
        self.scale = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x):
        y = self.norm(self.conv(x))
        z = F.hardswish(self.slope(y)) * self.scale
        pooled = (
            F.avg_pool2d(z, 3, 1, 1)
            + F.max_pool2d(z, 3, 1, 1)
            + F.pad(z, (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1]
        )
        gate = torch.sigmoid(z.mean((2, 3), keepdim=True))
        many = torch.cat([pooled * gate, F.interpolate(z, scale_factor=1.0), torch.zeros_like(z)], 1)
        shuffled = F.channel_shuffle(many, 4).flatten(2).permute(0, 2, 1)
        left, right = shuffled.chunk(2, -1)
        return left.sum(-1), right.clamp(-1, 1).amax(1), self.mixed(self.padded(z)), F.glu(y, 1)


@pytest.mark.parametrize("seed", range(3))
def test_many_operators_carry_constants(seed):
    torch.manual_seed(seed)
    assert holds(Walked(randomise_statistics(edited(Operators(), seed)), torch.randn(2, 3, 8, 8))) > 1000


def test_a_position_that_is_open_is_no_constant():
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.arange(6.0).view(3, 2))

        def forward(self, x):
            return x.unsqueeze(-1) * 0 + self.table[: x.shape[1]]

    walked = Walked(Positions(), torch.ones(2, 2, dtype=torch.long))
    assert not walked.known.of(walked.last()).any  # a longer input gets other numbers


def test_what_is_the_same_along_a_dimension_takes_no_memory_there():
    known = Known.all_of(torch.tensor([1.0, 2.0])[None, :, None].expand(3, 2, 5)).compact([])
    assert known.value.shape == (1, 2, 1)
    assert torch.equal(known.vector(1).value, torch.tensor([1.0, 2.0]))
    changing = Known.all_of(torch.eye(2)).vector(1)
    assert not changing.any


def test_multiplying_by_zero_is_zero_and_adding_an_unknown_is_unknown():
    class Products(nn.Module):
        def forward(self, x):
            return x * torch.zeros(3) + 1, x + torch.zeros(3)

    walked = Walked(Products(), torch.randn(2, 3))
    first, second = walked.traced.module.graph.output_node().args[0]
    assert bool((walked.known.of(first).value == 1).all()) and bool(walked.known.of(first).mask.all())
    assert not walked.known.of(second).any


def test_an_operator_that_is_not_known_blocks_what_it_touches():
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(torch.logcumsumexp(self.first(x), 0))

    walked = Walked(Strange(), torch.randn(3, 4))
    assert any("logcumsumexp" in reason for _, reason in walked.channels.blocked)
