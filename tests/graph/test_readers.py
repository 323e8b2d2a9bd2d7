"""Who else reads what belongs to a layer, on traced models."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsify import plan, trace
from sparsify.graph.facts import facts
from sparsify.graph.readers import other_readers


class Convolutions(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.free = nn.Parameter(torch.randn(8, 8))
        self.bias = nn.Parameter(torch.randn(8))
        self._forward = forward

    def forward(self, x):
        return self.head(self._forward(self, F.relu(self.stem(x))).mean((2, 3)))


def a_then_b(m, x):
    return F.relu(m.other(m.b(F.relu(m.norm(m.a(x))))))


def weight_in_output(m, x):
    return a_then_b(m, x) * m.a.weight.mean()


def bias_in_output(m, x):
    return a_then_b(m, x) * m.a.bias.mean()


def norm_on_a_sum(m, x):
    return m.norm(x + F.relu(m.other(m.b(F.relu(m.norm(m.a(x)))))))


def gain_in_output(m, x):
    return a_then_b(m, x) * m.norm.weight.mean()


def twice_with_its_norm(m, x):
    x = F.relu(m.norm(m.a(F.relu(m.norm(m.a(x))))))
    return F.relu(m.other(m.b(x)))


def readers(forward):
    traced = trace(Convolutions(forward).eval(), (torch.randn(2, 3, 6, 6),))
    return traced, other_readers(traced.module, facts(traced).layers, traced.ties)


@pytest.mark.parametrize("forward", [a_then_b, twice_with_its_norm])
def test_what_is_its_own_has_no_other_readers(forward):
    _, found = readers(forward)
    assert not found.of_parameters and not found.of_norm


@pytest.mark.parametrize(("forward", "read"), [(weight_in_output, "a.weight"), (bias_in_output, "a.bias")])
def test_a_parameter_that_another_node_reads_stays_where_it_is(forward, read):
    traced, found = readers(forward)
    assert set(found.of_parameters) == {"a"} and found.of_parameters["a"].startswith(f"{read} is also read")
    for family in ("parallel", "factorized", "doped"):
        made = plan(traced, family=family, sparsity=0.5)
        assert {layer.fqn for layer in made.layers if layer.masked} == {"b"}
        assert ("a", "shared") in {(refusal.fqn, refusal.rule) for refusal in made.refusals}


@pytest.mark.parametrize("forward", [norm_on_a_sum, gain_in_output])
def test_a_norm_that_serves_something_else_cannot_move(forward):
    traced, found = readers(forward)
    assert not found.of_parameters and set(found.of_norm) == {"a"}
    made = plan(traced, family="parallel", sparsity=0.5)
    assert {layer.fqn for layer in made.layers if layer.masked} == {"b"}
    assert ("a", "norm") in {(refusal.fqn, refusal.rule) for refusal in made.refusals}
    inserted = plan(traced, family="parallel", sparsity=0.5, branch_nonlinearity="norm+relu")
    assert {layer.fqn for layer in inserted.layers if layer.masked} == {"a", "b"}


class Functional(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.w, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8))
        self.stem, self.head, self._use = nn.Linear(4, 8), nn.Linear(8, 4), use

    def forward(self, x):
        return self.head(self._use(self, F.relu(self.stem(x))))


def called_twice(m, x):
    return F.relu(F.linear(F.relu(F.linear(x, m.w, m.bias)), m.w, m.bias))


def also_averaged(m, x):
    return F.relu(F.linear(x, m.w)) * m.w.mean()


def bias_computed(m, x):
    return F.linear(F.relu(F.linear(x, m.w, m.bias * 2)), m.w, m.bias * 2)


@pytest.mark.parametrize(
    ("use", "reason"),
    [(called_twice, None), (also_averaged, "w is also read by mean"), (bias_computed, "bias is computed")],
)
def test_weights_read_from_the_graph(use, reason):
    traced = trace(Functional(use), (torch.randn(3, 4),))
    functional = [layer for layer in facts(traced).layers if layer.functional]
    found = other_readers(traced.module, functional, traced.ties).of_parameters
    assert len(functional) == 1
    assert list(found.values()) == [] if reason is None else reason in found[functional[0].fqn]


def test_tied_biases_are_named():
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2)
    )
    model[4].bias = model[2].bias
    traced = trace(model, (torch.randn(3, 4),))
    found = other_readers(traced.module, facts(traced).layers, traced.ties)
    assert set(found.of_parameters) == {"2", "4"} and "tied to 4.bias" in found.of_parameters["2"]
