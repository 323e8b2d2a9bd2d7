"""WGSEF and group lasso in a training loop: the prox, the hard finish, masks, resumption."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn, optim

from sparsify import dst
from sparsify.dst.envelope import envelope_factors, lasso_factors
from sparsify.errors import UserError
from sparsify.masks import masked_parameters, random_mask, set_mask, topk_mask

METHODS = {"wgsef": dst.WGSEF, "lasso": dst.GroupLasso}
OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.01),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.003),
}
EXAMPLE = torch.zeros(2, 1, 6, 6)
STEPS = 60


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(160, 12),
        nn.GELU(),
        nn.Linear(12, 3),
    )


def make(method: str, model: nn.Module, optimizer: optim.Optimizer, **options: Any) -> dst.Algorithm:
    given = {"groups": "units", "keep": 0.4, "total_steps": STEPS, "example": EXAMPLE} | options
    return METHODS[method](model, optimizer, **given)


def steps(model: nn.Module, optimizer: optim.Optimizer, first: int, last: int) -> None:
    """Steps first + 1 to last, on batches that their numbers decide."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 1, 6, 6, generator=generator)
        target = (x.mean((1, 2, 3)) * 20).round().clamp(-1, 1).long() + 1
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()


def survivors(running: dst.Algorithm) -> list[int]:
    """Groups of every width that are not zero."""
    norms = running.groups.norms()
    return [int((norms[one.first : one.first + one.count] > 0).sum()) for one in running.groups.sets]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_k_groups_are_left_and_the_rest_stays_zero(method, kind):
    model = net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    running = make(method, model, optimizer)
    assert (running.phase, len(running.groups), running.k) == ("regularise", 30, 12)
    for step in range(STEPS):
        steps(model, optimizer, step, step + 1)
        alive = int((running.groups.norms() > 0).sum())
        assert alive == running.groups_alive >= running.k
        if running.phase == "masked":
            assert alive == 12
            for entry in masked_parameters(model).values():
                assert (entry.param[~entry.mask] == 0).all()
                for slot in optimizer.state[entry.param].values():
                    if slot.shape == entry.param.shape:
                        assert (slot[~entry.mask] == 0).all()
    (event,) = running.events
    assert event["step"] <= running.finish_step == 36
    assert event["groups_alive"] >= event["kept"] == 12
    assert running.density < 1
    counts = [
        int((running.groups.norms()[one.first : one.first + one.count] > 0).sum())
        for one in running.groups.sets
    ]
    assert min(counts) >= 1
    assert sum(counts) == 12


@pytest.mark.parametrize("method", METHODS)
def test_the_step_is_the_optimizers_and_then_the_prox_at_the_learning_rate(method):
    plain, model = net(), net()
    rates = [{"lr": 0.1}, {"lr": 0.02}]

    def optimizer_of(one: nn.Sequential) -> optim.Optimizer:
        split = [list(one[:5].parameters()), list(one[5:].parameters())]
        return optim.SGD([{"params": p} | rate for p, rate in zip(split, rates, strict=True)])

    optimizers = optimizer_of(plain), optimizer_of(model)
    running = make(method, model, optimizers[1], strength=0.4, floor=0.0)
    steps(plain, optimizers[0], 0, 1)
    steps(model, optimizers[1], 0, 1)
    before = dst.find_groups(plain, "units", example=EXAMPLE)
    alphas = torch.tensor([0.1 if one.kind == "filters" else 0.02 for one in before.sets]).repeat_interleave(
        torch.tensor([one.count for one in before.sets])
    )
    strength, weights = 0.4 * alphas.double(), before.sizes.sqrt()
    factors = (
        envelope_factors(before.norms(), 12, strength, weights=weights)
        if method == "wgsef"
        else lasso_factors(before.norms(), strength, weights=weights)
    )
    before.scale(factors)
    assert 12 <= int((factors > 0).sum()) == running.groups_alive
    for one, other in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
    assert float(factors.max()) < 1


@pytest.mark.parametrize("at", [7, 45])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_that_goes_on_ends_at_the_same_numbers(kind, at):
    straight = net()
    optimizer = OPTIMIZERS[kind](straight.parameters())
    running = make("wgsef", straight, optimizer)
    steps(straight, optimizer, 0, at)
    state = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), running.state_dict()))
    assert state[2]["phase"] == ("regularise" if at == 7 else "masked")
    resumed = net(seed=5)
    second = OPTIMIZERS[kind](resumed.parameters())
    again = make("wgsef", resumed, second)
    resumed.load_state_dict(state[0])
    second.load_state_dict(state[1])
    again.load_state_dict(state[2])
    for model, opt in ((straight, optimizer), (resumed, second)):
        steps(model, opt, at, STEPS)
    assert running.state_dict() == again.state_dict()
    assert running.phase == "masked"
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_state_of_other_groups_is_refused():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    state = make("wgsef", model, optimizer).state_dict()
    with pytest.raises(UserError, match="k = 12, here it is 15"):
        make("wgsef", model, optimizer, keep=0.5).load_state_dict(state)
    with pytest.raises(UserError, match="written by WGSEF"):
        make("lasso", model, optimizer).load_state_dict(state)


def test_every_width_keeps_its_floor_or_its_share():
    for options, least in (({"floor": 0.5}, [2, 2, 2]), ({"scope": "layer"}, [3, 4, 5])):
        model = net()
        optimizer = OPTIMIZERS["sgd"](model.parameters())
        running = make("wgsef", model, optimizer, **options)
        steps(model, optimizer, 0, STEPS)
        counts = survivors(running)
        assert all(count >= wanted for count, wanted in zip(counts, least, strict=True))
        assert sum(counts) == 12
        if "scope" in options:
            assert counts == least


def test_the_finish_keeps_the_largest_and_is_watched_before_and_after():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    seen: dict[str, torch.Tensor] = {}
    running = make(
        "wgsef", model, optimizer, floor=0.0, watch=lambda when, one: seen.update({when: one.groups.norms()})
    )
    steps(model, optimizer, 0, 20)
    running.finish()
    scores = running.groups.sizes.sqrt().sqrt() * seen["before"]
    kept = seen["after"] > 0
    assert torch.equal(seen["after"][kept], seen["before"][kept])
    firsts = torch.zeros_like(kept)
    for one in running.groups.sets:
        firsts[one.first + int(scores[one.first : one.first + one.count].argmax())] = True
    rest = topk_mask(scores.masked_fill(firsts, -torch.inf), 12 - 3)
    assert torch.equal(kept, firsts | rest)
    running.finish()
    assert len(running.events) == 1


def test_masks_that_were_there_stay_in_force():
    model = net()
    mask = random_mask(model[6].weight.shape, 400, torch.Generator().manual_seed(0))
    set_mask(model[6], "weight", mask)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    running = make("wgsef", model, optimizer)
    assert running.groups.sizes.sum() < sum(part.param.numel() for part in running.groups.parts)
    steps(model, optimizer, 0, STEPS)
    assert (model[6].weight_mask & ~mask).sum() == 0
    assert (model[6].weight[~mask] == 0).all()


@pytest.mark.parametrize("groups", ["weights", "2x5"])
def test_blocks_and_single_weights(groups):
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    running = make("wgsef", model, optimizer, groups=groups, keep=0.25, example=None)
    steps(model, optimizer, 0, STEPS)
    size = 1 if groups == "weights" else 10
    active = sum(int(entry.mask.sum()) for entry in masked_parameters(model).values())
    assert active == size * running.k
    assert running.density == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": None}, "either keep"),
        ({"k": 5}, "either keep"),
        ({"keep": 1.5}, r"keep must lie in \(0, 1\]"),
        ({"keep": None, "k": 2}, "k must lie between 3 .* and 30"),
        ({"scope": "all"}, "scope"),
        ({"weights": "log"}, "weights"),
        ({"strength": -1.0}, "strength"),
        ({"finish_at": 0.0}, "finish_at"),
        ({"floor": 1.0}, "floor"),
        ({"total_steps": 0}, "total_steps"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    model = net()
    with pytest.raises(UserError, match=message):
        make("wgsef", model, OPTIMIZERS["sgd"](model.parameters()), **options)


def test_what_is_not_trained_or_not_finite_is_refused():
    model = net()
    with pytest.raises(UserError, match=r"does not update: 1\.bias"):
        part = [p for name, p in model.named_parameters() if name != "1.bias"]
        make("wgsef", model, OPTIMIZERS["sgd"](part))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    make("wgsef", model, optimizer)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    model[6].weight.grad[3, 0] = torch.nan
    with pytest.raises(UserError, match=r"step 1: unit 3 of 6\.weight\[0\].*not finite"):
        optimizer.step()


@pytest.mark.parametrize(("name", "kind"), [("wgsef", dst.WGSEF), ("group-lasso", dst.GroupLasso)])
def test_it_is_made_by_name_and_works_without_a_graph(name, kind):
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    running = dst.make(name, model, optimizer, total_steps=STEPS, update_every=10, keep=0.5)
    assert isinstance(running, kind)
    steps(model, optimizer, 0, STEPS)
    assert running.groups_alive == 15
    assert running.phase == "masked"
    running.remove()
    steps(model, optimizer, 0, 1)
    assert running.step == STEPS


def test_a_learning_rate_that_a_scheduler_lowers_lowers_the_prox():
    """At a rate of zero nothing moves, whatever λ is."""
    model = net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    make("wgsef", model, optimizer, strength=5.0)
    optimizer.param_groups[0]["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    steps(model, optimizer, 0, 1)
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(before, model.parameters()))
