"""Units without weights in front of a batch norm: growth and the first step stay within measure."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn, optim

from sparsify import dst
from sparsify.dst.revival import bounded
from sparsify.masks import set_mask

OUTPUTS, INPUTS = 24, 40


def score(rows: dict[int, float]) -> Tensor:
    drawn = torch.rand(OUTPUTS, INPUTS, 1, 1, generator=torch.Generator().manual_seed(0))
    for row, factor in rows.items():
        drawn[row] *= factor
    return drawn


def mask(*empty: int) -> Tensor:
    found = torch.ones(OUTPUTS, INPUTS, 1, 1, dtype=torch.bool)
    found[:, ::2] = False
    found[list(empty)] = False
    return found


def test_a_unit_without_weights_scores_like_the_strongest_of_the_others() -> None:
    raw, present = score({3: 300.0}), mask(3)
    found = bounded(raw, present)
    others = [row for row in range(OUTPUTS) if row != 3]
    assert torch.equal(found[others], raw[others])
    torch.testing.assert_close(found[3].max(), raw[others].max())
    torch.testing.assert_close(found[3] / found[3].max(), raw[3] / raw[3].max())


def test_so_does_a_unit_whose_weights_all_read_dead_inputs() -> None:
    raw, present = score({5: 300.0}), mask()
    raw[5][present[5]] = 1e-9
    found = bounded(raw, present)
    torch.testing.assert_close(found[5].max(), raw[torch.arange(OUTPUTS) != 5].max())


@pytest.mark.parametrize("empty", [(), (3,), (3, 7), tuple(range(OUTPUTS))])
def test_scores_within_measure_are_left_alone(empty: tuple[int, ...]) -> None:
    raw = score(dict.fromkeys(empty, 0.5) if len(empty) < OUTPUTS else {})
    assert bounded(raw, mask(*empty)) is raw or torch.equal(bounded(raw, mask(*empty)), raw)


def test_a_strong_unit_with_weights_is_left_alone() -> None:
    raw = score({3: 300.0})
    assert bounded(raw, mask(7)) is raw


def net(empty: int) -> nn.Sequential:
    """Convolutions with batch norm, 3 % dense; the first unit of each has no weight where `empty` says so."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )
    generator = torch.Generator().manual_seed(1)
    for index in (0, 3):
        owner = model[index]
        chosen = torch.rand(owner.weight.shape, generator=generator) < 0.03
        chosen[:empty] = False
        set_mask(owner, "weight", chosen)
    return model


def train(
    model: nn.Module, optimizer: optim.Optimizer, steps: range, changes: list[float] | None = None
) -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(4, (40, 32), generator=generator)
    classes = 3 * torch.randn(4, 4, 8, 8, generator=generator)
    data = classes[labels] + torch.randn(40, 32, 4, 8, 8, generator=generator)
    for step in steps:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[step]), labels[step]).backward()
        optimizer.step()
        if changes is not None:
            changes.append(max(float(p.detach().abs().max()) for p in model.parameters() if p.dim() == 4))


@pytest.mark.parametrize("method", ["rigl", "sparse-momentum"])
def test_weights_keep_their_size_when_units_come_back(method: str) -> None:
    """Without the bounds the largest weights are 199 and 1109 after these steps."""
    model, sizes = net(4), list[float]()
    optimizer = optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
    algorithm = dst.make(method, model, optimizer, total_steps=60, update_every=5)
    train(model, optimizer, range(40), sizes)
    assert algorithm.updates == 8
    assert max(sizes) < 8


@pytest.mark.parametrize("stop", [5, 6])
def test_a_run_stopped_between_an_update_and_its_first_step_ends_the_same(stop: int) -> None:
    def start() -> tuple[nn.Module, optim.Optimizer, dst.Algorithm]:
        model = net(4)
        optimizer = optim.SGD(model.parameters(), lr=0.4, momentum=0.9)
        return model, optimizer, dst.make("rigl", model, optimizer, total_steps=40, update_every=5)

    whole, optimizer, _ = start()
    train(whole, optimizer, range(12))
    first, optimizer, algorithm = start()
    train(first, optimizer, range(stop))
    state = copy.deepcopy(algorithm.state_dict())
    assert bool(state["revival"]) == (stop == 5)
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second, optimizer, algorithm = start()
    second.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    algorithm.load_state_dict(state)
    train(second, optimizer, range(stop, 12))
    for name, expected in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], expected), name
