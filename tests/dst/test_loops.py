"""Ordinary training loops of every sort around the algorithms."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from sparsify import dst
from sparsify.errors import UserError
from sparsify.masks import masked_parameters, parse_pattern, verify_masks
from tests.dst.tiny import DENSITIES, EVERY, OPTIMIZERS, make, net, train_step


def check(model, optimizer):
    verify_masks(model)
    for fqn, entry in masked_parameters(model).items():
        slots = [s for s in optimizer.state[entry.param].values() if s.shape == entry.param.shape]
        assert slots and all((slot[~entry.mask] == 0).all() for slot in slots), fqn


METHODS = ["set", "rigl", "srigl", "sparse-momentum", "gmp"]


@pytest.mark.parametrize("name", METHODS)
def test_autocast_schedulers_and_several_groups(name):
    model, generator = net(name, "fan-in"), torch.Generator().manual_seed(0)
    groups = [
        {"params": model[0].parameters(), "lr": 0.01, "betas": (0.8, 0.99)},
        {"params": [p for layer in model[1:] for p in layer.parameters()]},
    ]
    optimizer = optim.AdamW(groups, lr=0.02)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    algorithm = make(name, model, optimizer, "fan-in")
    first = {fqn: entry.mask.clone() for fqn, entry in masked_parameters(model).items()}
    for _ in range(2 * EVERY):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(torch.randn(8, 4, 4, 4, generator=generator))
            assert output.dtype == torch.bfloat16
            loss = output.float().square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        check(model, optimizer)
    assert algorithm.updates == 2
    assert any(not torch.equal(first[fqn], e.mask) for fqn, e in masked_parameters(model).items())


@pytest.mark.parametrize("name", METHODS)
def test_parameters_in_bfloat16(name):
    model, generator = net(name, "unstructured" if name != "srigl" else "fan-in"), torch.Generator()
    model.bfloat16()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    algorithm = make(name, model, optimizer, "unstructured" if name != "srigl" else "fan-in")
    for _ in range(2 * EVERY):
        optimizer.zero_grad()
        x = torch.randn(8, 4, 4, 4, generator=generator).bfloat16()
        nn.functional.cross_entropy(model(x), torch.randint(4, (8,), generator=generator)).backward()
        optimizer.step()
        check(model, optimizer)
    assert algorithm.updates == 2


def test_a_step_that_a_scaler_skips_is_not_counted():
    model, generator = net("rigl", "unstructured"), torch.Generator().manual_seed(0)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    algorithm = make("rigl", model, optimizer, "unstructured")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-40)
    for _ in range(6):
        optimizer.zero_grad()
        loss = 100 * model(torch.randn(8, 4, 4, 4, generator=generator)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert 0 < algorithm.step < 6
    check(model, optimizer)


def test_parameters_left_out_of_the_optimizer_stay_as_they_are():
    model, generator = net("rigl", "unstructured"), torch.Generator().manual_seed(0)
    left_out = model[4].weight
    given = [param for param in model.parameters() if param is not left_out]
    before = (left_out.detach().clone(), model[4].weight_mask.clone())
    optimizer = OPTIMIZERS["sgd"](given)
    algorithm = make("rigl", model, optimizer, "unstructured")
    assert set(algorithm.entries) == set(DENSITIES) - {"4.weight"}
    for _ in range(2 * EVERY):
        train_step(model, optimizer, generator)
    assert algorithm.updates == 2
    assert torch.equal(left_out, before[0]) and torch.equal(model[4].weight_mask, before[1])


@pytest.mark.parametrize("name", ["set", "rigl", "sparse-momentum"])
def test_frozen_layers_keep_their_topology(name):
    model, generator = net(name, "unstructured"), torch.Generator().manual_seed(0)
    model[4].weight.requires_grad_(False)
    before = (model[4].weight.detach().clone(), model[4].weight_mask.clone())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    make(name, model, optimizer, "unstructured")
    total = sum(int(entry.mask.sum()) for entry in masked_parameters(model).values())
    for _ in range(2 * EVERY):
        train_step(model, optimizer, generator)
    assert torch.equal(model[4].weight, before[0]) and torch.equal(model[4].weight_mask, before[1])
    assert sum(int(entry.mask.sum()) for entry in masked_parameters(model).values()) == total


def test_wrappers_are_looked_through_so_that_states_fit_with_and_without_them():
    model, generator = net("srigl", "fan-in"), torch.Generator().manual_seed(0)
    wrapped = nn.DataParallel(model)
    optimizer = OPTIMIZERS["sgd"](wrapped.parameters())
    algorithm = make("srigl", wrapped, optimizer, "fan-in")
    assert set(algorithm.entries) == set(DENSITIES)
    for _ in range(EVERY - 1):
        train_step(wrapped, optimizer, generator)
    state = algorithm.state_dict()
    algorithm.remove()
    again = make("srigl", model, optimizer, "fan-in")
    again.load_state_dict(state)
    train_step(model, optimizer, generator)
    assert again.updates == 1
    parse_pattern("fan-in").check(model[4].weight_mask)


def test_a_compiled_model_trains_and_updates_as_the_plain_one_does():
    results = []
    for compiled in (False, True):
        model, generator = net("rigl", "unstructured"), torch.Generator().manual_seed(0)
        running = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = OPTIMIZERS["sgd"](running.parameters())
        algorithm = make("rigl", running, optimizer, "unstructured")
        for _ in range(2 * EVERY + 1):
            train_step(running, optimizer, generator)
            check(model, optimizer)
        assert algorithm.updates == 2 and algorithm.changed > 0
        results.append(model.state_dict())
    for fqn, tensor in results[0].items():
        assert torch.allclose(tensor.float(), results[1][fqn].float(), atol=1e-5), fqn


def test_the_three_lines_of_a_plain_loop():
    """Model, optimizer, algorithm: nothing else in the loop changes."""
    model = net("set", "2:4")
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    dst.SET(model, optimizer, total_steps=4, update_every=1, pattern="2:4")
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 4, 4)).square().mean().backward()
        optimizer.step()
    for entry in masked_parameters(model).values():
        parse_pattern("2:4").check(entry.mask)


def test_a_slot_that_mixes_weights_is_refused():
    class Factored(optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            for slots in self.state.values():
                slots["row"] = torch.ones(3)

    model, generator = net("rigl", "unstructured"), torch.Generator().manual_seed(0)
    optimizer = Factored(model.parameters())
    make("rigl", model, optimizer, "unstructured")
    with pytest.raises(UserError, match=r"Factored keeps 'row' of shape \(3,\) for 0\.weight"):
        for _ in range(EVERY):
            train_step(model, optimizer, generator)
