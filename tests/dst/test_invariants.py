"""Weights and optimizer slots outside the mask are zero at every step, whatever the loop around them does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim

from sparsify import dst
from sparsify.errors import SparsifyError, UserError
from sparsify.masks import masked_parameters, random_mask, set_mask

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
}


def masked_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 12),
        nn.Linear(12, 4),
    )
    generator = torch.Generator().manual_seed(seed)
    for index, density in ((0, 0.5), (4, 0.2)):
        weight = model[index].weight
        set_mask(
            model[index], "weight", random_mask(weight.shape, round(density * weight.numel()), generator)
        )
    return model


def assert_zero_outside(model: nn.Module, optimizer: optim.Optimizer) -> None:
    entries = masked_parameters(model)
    assert len(entries) == 2
    for fqn, entry in entries.items():
        assert (entry.param[~entry.mask] == 0).all(), f"{fqn} has weights outside its mask"
        assert entry.param[entry.mask].abs().sum() > 0
        for name, slot in optimizer.state[entry.param].items():
            if torch.is_tensor(slot) and slot.shape == entry.param.shape:
                assert (slot[~entry.mask] == 0).all(), f"slot {name} of {fqn} is not zero outside its mask"


def train_step(model, optimizer, generator, micro_batches=2, clip=0.5):
    optimizer.zero_grad()
    for _ in range(micro_batches):
        x = torch.randn(8, 1, 6, 6, generator=generator)
        loss = nn.functional.cross_entropy(model(x), torch.randint(4, (8,), generator=generator))
        (loss / micro_batches).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def make(name: str, model: nn.Module, optimizer: optim.Optimizer) -> dst.Algorithm:
    if name == "static":
        return dst.Static(model, optimizer, total_steps=24, update_every=3)
    return dst.RigL(model, optimizer, total_steps=24, update_every=3, drop_fraction=0.5, window=2)


@pytest.mark.parametrize("algorithm", ["static", "rigl"])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_weights_and_slots_stay_zero_with_accumulation_clipping_copies_and_reloads(kind, algorithm):
    model, generator = masked_net(), torch.Generator().manual_seed(3)
    optimizer = OPTIMIZERS[kind](model.parameters())
    running = make(algorithm, model, optimizer)
    counts = {fqn: int(e.mask.sum()) for fqn, e in masked_parameters(model).items()}
    first = {fqn: e.mask.clone() for fqn, e in masked_parameters(model).items()}
    for step in range(1, 25):
        train_step(model, optimizer, generator)
        assert_zero_outside(model, optimizer)
        assert {fqn: int(e.mask.sum()) for fqn, e in masked_parameters(model).items()} == counts
        if step in (5, 11):
            state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), running.state_dict()))
            model = copy.deepcopy(model) if step == 5 else masked_net(seed=99)
            model.load_state_dict(state[0])
            optimizer = OPTIMIZERS[kind](model.parameters())
            optimizer.load_state_dict(state[1])
            running = make(algorithm, model, optimizer)
            running.load_state_dict(state[2])
            assert running.step == step
    moved = {fqn: not torch.equal(first[fqn], e.mask) for fqn, e in masked_parameters(model).items()}
    assert moved == dict.fromkeys(counts, algorithm == "rigl")


@pytest.mark.parametrize("algorithm", ["static", "rigl"])
def test_a_reload_continues_to_the_same_numbers(algorithm):
    """Stops inside a window, where part of the dense gradients is collected already."""
    straight = masked_net()
    optimizer = OPTIMIZERS["adamw"](straight.parameters())
    running = make(algorithm, straight, optimizer)
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        train_step(straight, optimizer, generator)
    state = copy.deepcopy((straight.state_dict(), optimizer.state_dict(), running.state_dict()))
    position = generator.get_state()
    resumed = masked_net(seed=50)
    resumed.load_state_dict(state[0])
    second = OPTIMIZERS["adamw"](resumed.parameters())
    second.load_state_dict(state[1])
    make(algorithm, resumed, second).load_state_dict(state[2])
    for model, opt in ((straight, optimizer), (resumed, second)):
        generator.set_state(position)
        for _ in range(7):
            train_step(model, opt, generator)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("kind", [optim.Adamax, optim.ASGD, optim.Rprop, optim.LBFGS])
def test_other_optimizers_are_refused(kind):
    model = masked_net()
    with pytest.raises(UserError, match=rf"{kind.__name__} is not known to keep masked weights at zero"):
        dst.Static(model, kind(model.parameters(), lr=0.1), total_steps=1)


def test_a_subclass_of_an_elementwise_optimizer_is_taken_and_watched():
    class Shifted(optim.SGD):
        shift = 0.0

        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                for param in self.param_groups[0]["params"]:
                    param.add_(self.shift)

    model, generator = masked_net(), torch.Generator().manual_seed(0)
    optimizer = Shifted(model.parameters(), lr=0.1)
    dst.Static(model, optimizer, total_steps=9, update_every=1)
    train_step(model, optimizer, generator)
    optimizer.shift = 1.0
    with pytest.raises(SparsifyError, match="outside the mask"):
        train_step(model, optimizer, generator)
        train_step(model, optimizer, generator)


def test_eps_zero_and_foreign_parameters_are_refused():
    model = masked_net()
    with pytest.raises(UserError, match="eps"):
        dst.Static(model, optim.Adam(model.parameters(), eps=0.0), total_steps=1)
    with pytest.raises(UserError, match="no parameter of this optimizer has a mask"):
        dst.Static(model, optim.SGD(masked_net(1).parameters(), lr=0.1), total_steps=1)


def test_slots_that_exist_before_the_algorithm_are_masked():
    model, generator = masked_net(), torch.Generator().manual_seed(0)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train_step(model, optimizer, generator)
    entry = masked_parameters(model)["4.weight"]
    smaller = entry.mask & (torch.rand(entry.mask.shape, generator=generator) < 0.5)
    set_mask(entry.owner, entry.name, smaller)
    assert optimizer.state[entry.param]["exp_avg"][~smaller].abs().sum() > 0
    dst.Static(model, optimizer, total_steps=1)
    assert_zero_outside(model, optimizer)


def test_static_finds_a_weight_that_somebody_wrote():
    model, generator = masked_net(), torch.Generator().manual_seed(0)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    dst.Static(model, optimizer, total_steps=100, update_every=1)
    train_step(model, optimizer, generator)
    with torch.no_grad():
        model[4].weight.add_(1.0)
    with pytest.raises(SparsifyError, match=r"4\.weight"):
        train_step(model, optimizer, generator)


def test_state_of_another_algorithm_is_refused():
    model = masked_net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    static = dst.Static(model, optimizer, total_steps=9)
    with pytest.raises(UserError, match="written by Static, not by RigL"):
        make("rigl", model, optimizer).load_state_dict(static.state_dict())


def test_a_removed_algorithm_leaves_the_loop_alone():
    model, generator = masked_net(), torch.Generator().manual_seed(0)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    rigl = make("rigl", model, optimizer)
    rigl.remove()
    before = {fqn: e.mask.clone() for fqn, e in masked_parameters(model).items()}
    for _ in range(4):
        train_step(model, optimizer, generator)
    assert rigl.step == 0
    for fqn, entry in masked_parameters(model).items():
        assert torch.equal(entry.mask, before[fqn])
    assert_zero_outside(model, optimizer)
