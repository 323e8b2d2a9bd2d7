"""Rewrites under patterns: masks of new and of kept weights, denser starts, archives, inspection."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import SparsifyError, UserError
from sparsify.graph.facts import facts as facts_of
from sparsify.graph.trace import trace
from sparsify.masks import (
    check_patterns,
    masked_parameters,
    parse_pattern,
    pattern_of,
    set_mask,
    verify_masks,
)
from sparsify.passes import rewrite
from sparsify.passes.preserve import plan_defaults
from sparsify.planning import plan

PATTERNS = ("fan-in", "2:4", "4x1", "2x4")


class Net(nn.Module):
    """Hidden layers: a convolution, a grouped one, two linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.first, self.second, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.grouped(torch.relu(self.conv(torch.relu(self.stem(x))))))
        return self.head(torch.relu(self.second(torch.relu(self.first(x.mean((2, 3)))))))


@functools.cache
def traced():
    torch.manual_seed(0)
    found = trace(Net().eval(), (torch.randn(2, 3, 6, 6),))
    return found, facts_of(found)


def made(family, pattern, init="scratch", start=None, **options):
    found, facts = traced()
    options = {"family": family, "pattern": pattern, **options}
    if init == "preserve":
        options = plan_defaults(options)
    elif family == "parallel":
        options["branch_nonlinearity"] = "none"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        planned = plan(found, facts=facts, **options)
        return rewrite(found, planned, init=init, initial_density=start, facts=facts)


def counts(model):
    return {fqn: int(entry.mask.sum()) for fqn, entry in masked_parameters(model).items()}


def planned_counts(model):
    layers = model.sparsify.plan.layers
    return {tensor.fqn: tensor.nnz for layer in layers for tensor in layer.tensors if tensor.masked}


@pytest.mark.parametrize("init", ["scratch", "preserve"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("family", ["wide", "masked", "parallel", "factorized", "doped"])
def test_masks_have_the_planned_counts_and_the_pattern(family, pattern, init):
    if family == "factorized" and init == "preserve" and "x" in pattern:
        with pytest.raises(UserError, match=f"factorized under pattern '{pattern}'"):
            made(family, pattern, init)
        return
    model = made(family, pattern, init)
    entries = masked_parameters(model)
    assert len(entries) >= 4 and pattern_of(model).name == pattern
    for entry in entries.values():
        parse_pattern(pattern).check(entry.mask)
    assert counts(model) == planned_counts(model)
    verify_masks(model)
    assert torch.isfinite(model(torch.randn(2, 3, 6, 6))).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_largest_weights_that_the_pattern_allows_are_kept(pattern):
    model, given = made("masked", pattern, "preserve"), traced()[0].module
    for fqn, entry in masked_parameters(model).items():
        old = given.get_parameter(fqn)
        assert torch.equal(entry.param, old * entry.mask)
        best = parse_pattern(pattern).mask_from_scores(old.abs(), int(entry.mask.sum()))
        assert torch.equal(entry.mask, best)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kept_weights_of_a_wider_model_stay_where_the_pattern_lets_them(pattern):
    """New outputs read old inputs; new inputs feed old outputs with zeros, so only lost weights count."""
    model = made("wide", pattern, "preserve")
    report = model.sparsify.preserve
    allowed = {"fan-in": 0.6, "2:4": 0.6, "4x1": 0.35, "2x4": 0.4}[pattern]
    assert report["outputs"]["relative"] < 0.15
    assert all(0 < layer["relative_error"] < allowed for layer in report["layers"])
    weight, old = model.get_parameter("second.weight"), traced()[0].module.get_parameter("second.weight")
    assert weight.shape[0] > 32
    new_rows = weight[32:].count_nonzero(1)
    assert new_rows.sum() > 0
    assert (weight[:32, 32:] == 0).all()
    kept = weight[:32, :32] != 0
    assert torch.equal(weight[:32, :32][kept], old[kept])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("init", ["scratch", "preserve"])
def test_linear_branches_share_no_entry_and_preserve_loses_none(pattern, init):
    model = made("parallel", pattern, init)
    masks = [entry.mask for fqn, entry in masked_parameters(model).items() if fqn.startswith("first.")]
    assert len(masks) >= 2
    assert (sum(mask.int() for mask in masks) == 1).all()
    if init == "preserve":
        assert model.sparsify.preserve["outputs"]["relative"] < 1e-5


@pytest.mark.parametrize("init", ["scratch", "preserve"])
@pytest.mark.parametrize("pattern", ["unstructured", *PATTERNS])
@pytest.mark.parametrize("family", ["wide", "masked", "parallel"])
def test_a_dense_start_keeps_every_weight_and_the_planned_counts(family, pattern, init):
    model = made(family, pattern, init, start=1.0)
    assert all(bool(entry.mask.all()) for entry in masked_parameters(model).values())
    assert model.sparsify.plan == made(family, pattern, init).sparsify.plan
    check_patterns(model)
    if init == "preserve":
        assert model.sparsify.preserve["outputs"]["relative"] < 1e-5


@pytest.mark.parametrize("pattern", ["unstructured", *PATTERNS])
def test_a_start_between_is_of_the_pattern_and_drawn_for_its_density(pattern):
    model, whole = made("masked", pattern, start=0.75), made("masked", pattern)
    check_patterns(model)
    for fqn, count in counts(model).items():
        numel = model.get_parameter(fqn).numel()
        assert count == pytest.approx(0.75 * numel, abs=numel / 32)
        ratio = whole.sparsify.scaling[fqn].init_std / model.sparsify.scaling[fqn].init_std
        assert ratio == pytest.approx((count / planned_counts(model)[fqn]) ** 0.5)
        assert whole.sparsify.scaling[fqn].adam_lr == model.sparsify.scaling[fqn].adam_lr


@pytest.mark.parametrize(("start", "message"), [(0.0, "must lie in"), (1.5, "must lie in"), (0.1, "below")])
def test_starts_out_of_range_are_user_errors(start, message):
    with pytest.raises(UserError, match=message):
        made("masked", "unstructured", start=start)


def test_save_refuses_a_mask_that_left_the_pattern(tmp_path):
    model = made("masked", "2:4")
    mask = model.first.weight_mask.clone()
    mask[0, 0] = ~mask[0, 0]
    set_mask(model.first, "weight", mask)
    with pytest.raises(SparsifyError, match=r"first\.weight: the mask is not 2:4: row 0"):
        sparsify.save(model, tmp_path / "model.pt2")


@pytest.mark.parametrize(("units", "left"), [([0], "unstructured"), ([0, 1, 2, 3], "2:4")])
def test_taking_units_out_may_end_the_pattern(units, left, tmp_path):
    model = made("masked", "2:4")
    group = next(one for one in model.sparsify.plan.groups if "second.weight[1]" in one.members)
    smaller = sparsify.narrow(model, units={group.id: units})
    assert smaller.get_parameter("second.weight").shape == (32, 32 - len(units))
    assert pattern_of(smaller).name == left
    sparsify.save(smaller, tmp_path / "smaller.pt2")


@pytest.mark.parametrize("start", [None, 1.0])
def test_a_dense_checkpoint_is_loaded_under_the_pattern(start):
    model = made("masked", "fan-in", start=start)
    sparsify.load_dense(model, traced()[0].module.state_dict())
    expected = made("masked", "fan-in", "preserve", start=start, distribution="uniform")
    assert counts(model) == counts(expected)
    for fqn, entry in masked_parameters(model).items():
        assert torch.equal(entry.param, expected.get_parameter(fqn))
