from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from sparsify.dst import RigL
from sparsify.dst.schedule import CosineSchedule
from sparsify.dst.update import drop_and_grow
from sparsify.errors import UserError
from sparsify.masks import gradient_mask, set_mask


def test_the_update_drops_the_smallest_and_grows_the_largest_gradient():
    weight = torch.tensor([5.0, -0.1, 0.2, -4.0, 0.0, 0.0, 0.0, 0.0])
    mask = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0], dtype=torch.bool)
    growth = torch.tensor([9.0, 0.0, 8.0, 9.0, 1.0, 7.0, 1.0, 0.5])
    new = drop_and_grow(weight, mask, growth, 0.5)
    # -0.1 and 0.2 are dropped; positions 2 (just dropped) and 5 have the largest gradients among the rest.
    assert new.nonzero().flatten().tolist() == [0, 2, 3, 5]


@given(st.integers(1, 60), st.data())
@settings(max_examples=80, deadline=None)
def test_counts_are_exact_and_ties_go_to_the_lower_index(numel, data):
    active = data.draw(st.integers(1, numel))
    fraction = data.draw(st.floats(0, 1))
    values = st.lists(st.sampled_from([0.0, 0.5, -0.5, 2.0]), min_size=numel, max_size=numel)
    mask = torch.arange(numel) < active
    weight, growth = torch.tensor(data.draw(values)) * mask, torch.tensor(data.draw(values)).abs()
    new = drop_and_grow(weight, mask, growth, fraction)
    assert int(new.sum()) == active
    dropped = int(active * fraction)
    kept = sorted(range(active), key=lambda i: (-abs(float(weight[i])), i))[: active - dropped]
    grown = sorted(set(range(numel)) - set(kept), key=lambda i: (-float(growth[i]), i))[:dropped]
    assert new.nonzero().flatten().tolist() == sorted(kept + grown)


def test_the_schedule_is_a_cosine_and_ends():
    schedule = CosineSchedule(every=10, drop_fraction=0.3, stop=75)
    assert [step for step in range(101) if schedule.due(step)] == [10, 20, 30, 40, 50, 60, 70]
    assert schedule.fraction(0) == pytest.approx(0.3)
    assert schedule.fraction(50) == pytest.approx(0.15 * (1 + math.cos(math.pi * 2 / 3)))
    assert schedule.fraction(75) == schedule.fraction(90) == 0.0
    assert [schedule.next_due(step) for step in (0, 9, 10, 69, 70)] == [10, 10, 20, 70, None]


class Line(nn.Module):
    """y = w · x with 8 weights of known values and gradients that the test chooses."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([5.0, -0.1, 0.2, -4.0, 0.0, 0.0, 0.0, 0.0]))
        set_mask(self, "weight", torch.tensor([1, 1, 1, 1, 0, 0, 0, 0], dtype=torch.bool))

    def forward(self, x):
        return (self.weight * x).sum()


GRADIENT = torch.tensor([9.0, 0.0, 8.0, 9.0, 1.0, 7.0, 1.0, 0.5])


def step(model, optimizer, *gradients):
    optimizer.zero_grad()
    for gradient in gradients:
        model(gradient).backward()
    optimizer.step()


def rigl_on_line(**options):
    model = Line()
    optimizer = optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    fixed = {"total_steps": 100, "update_every": 4, "drop_fraction": 0.6} | options
    return model, optimizer, RigL(model, optimizer, **fixed)


def test_regrown_weights_keep_value_and_slot_and_grown_ones_start_at_zero():
    model, optimizer, rigl = rigl_on_line()
    for _ in range(4):
        step(model, optimizer, GRADIENT)
    assert model.weight_mask.nonzero().flatten().tolist() == [0, 2, 3, 5]
    slot = optimizer.state[model.weight]["momentum_buffer"]
    assert float(model.weight.detach()[2]) == pytest.approx(0.2, abs=1e-3)
    assert float(slot[2]) > 8.0
    assert float(model.weight.detach()[5]) == 0.0 and float(slot[5]) == 0.0
    assert float(model.weight.detach()[1]) == 0.0 and float(slot[1]) == 0.0
    assert rigl.changed == 1
    step(model, optimizer, GRADIENT)
    assert float(model.weight.detach()[5]) < 0.0, "a grown weight must learn"


def test_only_gradients_of_the_window_count_and_micro_batches_add_up():
    model, optimizer, _ = rigl_on_line(window=2)
    early, late = torch.zeros(8), torch.zeros(8)
    early[4], late[6], late[7] = 100.0, 3.0, 2.0
    step(model, optimizer, early)
    step(model, optimizer, early)
    assert gradient_mask(model.weight).collector is not None
    step(model, optimizer, late, late)
    step(model, optimizer, torch.zeros(8), late)
    assert model.weight_mask.nonzero().flatten().tolist() == [0, 3, 6, 7]
    assert gradient_mask(model.weight).collector is None


def test_a_non_finite_gradient_postpones_the_update():
    model, optimizer, rigl = rigl_on_line()
    before = model.weight_mask.clone()
    for _ in range(3):
        step(model, optimizer, GRADIENT)
    poisoned = GRADIENT.clone()
    poisoned[7] = torch.inf
    step(model, optimizer, poisoned)
    assert rigl.postponed and torch.equal(model.weight_mask, before)
    assert model.weight.isfinite().all(), "the masked gradient was finite, so the weights must be"
    step(model, optimizer, GRADIENT)
    assert not rigl.postponed
    assert model.weight_mask.nonzero().flatten().tolist() == [0, 2, 3, 5]


def test_a_parameter_without_gradient_keeps_its_topology():
    model, optimizer, rigl = rigl_on_line()
    before = model.weight_mask.clone()
    for _ in range(8):
        optimizer.step()
    assert rigl.step == 8
    assert torch.equal(model.weight_mask, before)


def test_the_topology_is_fixed_after_stop_fraction():
    model, optimizer, _ = rigl_on_line(total_steps=16, stop_fraction=0.5)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(16):
        step(model, optimizer, torch.randn(8, generator=generator))
        seen.append(model.weight_mask.clone())
    assert not torch.equal(seen[2], seen[3])
    assert all(torch.equal(seen[3], mask) for mask in seen[3:])


def test_options_out_of_range_are_refused_and_leave_no_hook():
    model = Line()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for options in (
        {"total_steps": 0},
        {"stop_fraction": 1.5},
        {"window": 101},
        {"window": 0},
        {"update_every": 0, "window": 1},
        {"drop_fraction": -0.1},
    ):
        with pytest.raises(UserError):
            RigL(model, optimizer, **{"total_steps": 10, **options})
    assert not optimizer._optimizer_step_post_hooks
