from __future__ import annotations

import copy

import pytest
import torch
from torch import nn, optim

import sparsify
from sparsify import dst
from sparsify.errors import UserError
from sparsify.masks import masked_parameters


def plain(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 8), nn.Linear(8, 4))


def run(model, optimizer, steps, generator):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def sgd(model):
    return optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def test_a_plain_model_is_pruned_to_one_density_or_to_densities_by_name():
    model, generator = plain(), torch.Generator().manual_seed(0)
    optimizer = sgd(model)
    algorithm = dst.GMP(model, optimizer, total_steps=20, update_every=2, target=0.25)
    assert algorithm.density == 1.0
    run(model, optimizer, 20, generator)
    assert algorithm.counts == {"0.weight": 72, "3.weight": 64, "4.weight": 8}
    model = plain()
    optimizer = sgd(model)
    algorithm = dst.GMP(model, optimizer, total_steps=20, update_every=2, target={"3.weight": 0.1})
    run(model, optimizer, 20, generator)
    assert algorithm.counts == {"3.weight": 26}
    assert list(masked_parameters(model)) == ["3.weight"]


def test_what_goes_are_the_smallest_of_those_that_are_left():
    model = nn.Linear(10, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[5.0, -1, 9, 2, -8, 3, 7, -4, 6, 10]]))
    optimizer = optim.SGD(model.parameters(), lr=1e-9)
    dst.GMP(model, optimizer, total_steps=4, update_every=1, start_fraction=0, stop_fraction=1, target=0.2)
    counts, kept = [], []
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(1, 10)).sum().backward()
        optimizer.step()
        counts.append(int(model.weight_mask.sum()))
        kept.append(sorted(model.weight.detach()[model.weight_mask].abs().round().tolist()))
    # 2 + 8 · (1 − t/4)³: 5.4, 3, 2.1, 2.
    assert counts == [5, 3, 2, 2]
    assert kept[:3] == [[6, 7, 8, 9, 10], [8, 9, 10], [9, 10]]


def test_n_m_groups_go_from_m_to_n():
    model, generator = plain(), torch.Generator().manual_seed(0)
    optimizer = sgd(model)
    algorithm = dst.GMP(model, optimizer, total_steps=20, update_every=1, target=0.25, pattern="1:4")
    seen = []
    for _ in range(20):
        run(model, optimizer, 1, generator)
        groups = model[3].weight_mask.reshape(-1, 4).sum(1)
        assert int(groups.min()) == int(groups.max())
        seen.append(int(groups[0]))
    assert sorted(set(seen), reverse=True) == [4, 3, 2, 1] and seen == sorted(seen, reverse=True)
    assert algorithm.density == 0.25
    with pytest.raises(UserError, match=r"a 1:4 mask has density 0\.25, which target=0.5 is not"):
        fresh = plain()
        dst.GMP(fresh, sgd(fresh), total_steps=20, update_every=1, target=0.5, pattern="1:4")


@pytest.mark.parametrize("pattern", ["unstructured", "fan-in", "2:4", "4x2"])
def test_targets_come_from_the_plan(pattern):
    model = sparsify.transform(
        plain(),
        (torch.zeros(2, 4, 4, 4),),
        family="masked",
        sparsity=0.5,
        pattern=pattern,
        initial_density=1.0,
        parameterization="sp",
    )
    planned = {t.fqn: t.nnz for layer in model.sparsify.plan.layers for t in layer.tensors if t.masked}
    optimizer, generator = sgd(model), torch.Generator().manual_seed(0)
    algorithm = dst.GMP(model, optimizer, total_steps=20, update_every=2)
    assert algorithm.density == 1.0 and algorithm.targets == planned
    run(model, optimizer, 20, generator)
    assert algorithm.counts == planned
    sparsify.masks.check_patterns(model)
    assert algorithm.flops == model.sparsify.plan.flops.sparse


def test_a_model_at_its_target_is_refused_but_a_finished_run_resumes():
    model, generator = plain(), torch.Generator().manual_seed(0)
    optimizer = sgd(model)
    options = {"total_steps": 20, "update_every": 2, "target": 0.25}
    algorithm = dst.GMP(model, optimizer, **options)
    run(model, optimizer, 16, generator)
    with pytest.raises(UserError, match=r"nothing is left to prune.*initial_density=1\.0"):
        dst.GMP(model, sgd(model), **options)
    state = copy.deepcopy(algorithm.state_dict())
    algorithm.remove()
    dst.GMP(model, optimizer, **options).load_state_dict(state)
    run(model, optimizer, 4, generator)
    again = dst.GMP(model, optimizer, **options)
    with pytest.raises(UserError, match="nothing is left to prune"):
        run(model, optimizer, 1, generator)
    again.remove()


def test_without_target_or_plan_or_with_unknown_names():
    model = plain()
    for layer in (model[0], model[3]):
        sparsify.masks.set_mask(layer, "weight", torch.ones_like(layer.weight, dtype=torch.bool))
    optimizer = sgd(model)
    with pytest.raises(UserError, match="GMP needs a target"):
        dst.GMP(model, optimizer, total_steps=20, update_every=2)
    with pytest.raises(UserError, match=r"no parameter '9\.weight'"):
        dst.GMP(model, optimizer, total_steps=20, update_every=2, target={"9.weight": 0.5})
    with pytest.raises(UserError, match="rise within"):
        dst.GMP(model, optimizer, total_steps=20, update_every=2, target=0.5, start_fraction=0.8)
    assert not optimizer._optimizer_step_post_hooks


def test_frozen_weights_stay():
    model, generator = plain(), torch.Generator().manual_seed(0)
    optimizer = sgd(model)
    algorithm = dst.GMP(model, optimizer, total_steps=20, update_every=2, target=0.25)
    model[3].weight.requires_grad_(False)
    run(model, optimizer, 20, generator)
    assert algorithm.counts == {"0.weight": 72, "3.weight": 256, "4.weight": 8}
