"""The whole rewrite on every model, as properties."""

import json

import pytest
import torch

from sparsify.errors import InvalidPlanError, UserError
from sparsify.masks.state import masked_parameters
from sparsify.passes import PIPELINE, Record, rewrite
from sparsify.planning import Plan
from tests.passes.rewriting import (
    Rewriting,
    counts_as_torch_does,
    has_the_planned_masks,
    has_the_planned_shapes,
    keeps_the_flops,
    runs_at_other_sizes,
    shares_nothing,
    survives_a_state_dict,
    trains,
)

NAMES = ["mlp", "resnet", "hf_resnet", "vit", "bert", "gpt2", "llama"]


@pytest.mark.parametrize("scope", ["all", "inner"])
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_the_flops_of_the_model_stay_within_a_thousandth(name, sparsity, scope):
    case = Rewriting(name).plan(sparsity=sparsity, scope=scope).rewrite()
    case.check(counts_as_torch_does, keeps_the_flops, has_the_planned_masks, has_the_planned_shapes)


@pytest.mark.parametrize("name", [*NAMES, "flatten_cnn"])
def test_the_rewritten_model_runs_trains_and_stands_alone(name):
    case = Rewriting(name).plan().rewrite()
    case.check(runs_at_other_sizes, trains, survives_a_state_dict, shares_nothing)


@pytest.mark.parametrize("name", ["resnet", "bert", "llama"])
def test_masked_keeps_weights_and_prunes_the_smallest(name):
    case = Rewriting(name).plan(family="masked", sparsity=0.8).rewrite(init="preserve")
    case.check(has_the_planned_masks, has_the_planned_shapes, runs_at_other_sizes, shares_nothing)
    given = dict(case.traced.module.named_parameters())
    for fqn, entry in masked_parameters(case.result).items():
        assert torch.equal(entry.param[entry.mask], given[fqn][entry.mask])
        assert given[fqn][~entry.mask].abs().max() <= given[fqn][entry.mask].abs().min()


@pytest.mark.parametrize("name", ["mlp", "resnet", "bert"])
def test_preserving_without_sparsity_is_the_same_function(name):
    case = Rewriting(name).plan(family="masked", sparsity=0.0).rewrite(init="preserve")
    dense = Rewriting(name)
    dense.result = case.traced.module
    pairs = list(zip(case.outputs(), dense.outputs(), strict=True))
    assert pairs and all(torch.equal(a, b) for a, b in pairs)
    assert not masked_parameters(case.result)


def test_the_same_seed_gives_the_same_model_and_another_seed_another():
    states = [Rewriting("resnet").plan().rewrite(seed=seed).result.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    masks = [key for key in states[0] if key.endswith("_mask")]
    assert masks and not any(torch.equal(states[0][key], states[2][key]) for key in masks)


def test_a_tensor_does_not_depend_on_the_others():
    """Keeping one layer dense at given widths leaves every other layer's draws as they were."""
    whole = Rewriting("bert").plan(width=2.0, sparsity=0.5).rewrite().result.state_dict()
    keep = "encoder.layer.0.intermediate.dense"
    part = Rewriting("bert").plan(width=2.0, sparsity=0.5, keep_dense=keep).rewrite().result.state_dict()
    same = [key for key in whole if key in part and not key.startswith(keep)]
    assert len(same) > 20 and all(torch.equal(whole[key], part[key]) for key in same)


def test_ties_stay_ties():
    case = Rewriting("gpt2").plan().rewrite()
    assert case.traced.ties
    for tie in case.traced.ties:
        assert len({id(case.result.get_parameter(name)) for name in tie}) == 1
        assert not any(name in masked_parameters(case.result) for name in tie)


def test_an_edited_plan_is_followed_and_a_foreign_one_refused():
    case = Rewriting("mlp").plan()
    data = json.loads(case.made.to_json())
    group = next(group for group in data["groups"] if not group["pinned"])
    group["width"] = 88
    case.made = Plan.from_json(data)
    case.rewrite()
    assert 88 in {extent for value in case.result.parameters() for extent in value.shape}
    with pytest.raises(InvalidPlanError):
        rewrite(Rewriting("resnet").traced, case.made, facts=Rewriting("resnet").facts)


def test_the_record_holds_everything_and_survives_json():
    case = Rewriting("gpt2").plan().rewrite()
    record = case.result.sparsify
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    names = {name for name, _ in case.result.named_parameters(remove_duplicate=False)}
    assert {entry.new for entry in record.parameter_map} == names
    assert {entry.old for entry in record.parameter_map} <= set(case.model.state_dict())
    assert any(entry.transposed for entry in record.parameter_map)
    assert record.parameters_dense == sum(value.numel() for value in case.model.parameters())


def test_the_given_model_is_left_as_it_was():
    case = Rewriting("resnet")
    before = {key: value.clone() for key, value in case.traced.module.state_dict().items()}
    code = case.traced.module.code
    case.plan().rewrite()
    assert code == case.traced.module.code
    assert all(torch.equal(value, before[key]) for key, value in case.traced.module.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_with_nan_are_named(bad):
    case = Rewriting("mlp").plan()
    weight = case.traced.module.get_parameter("head.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = bad
    try:
        with pytest.raises(UserError, match=r"head\.weight"):
            case.rewrite()
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_changed_nodes_say_which_pass_changed_them():
    case = Rewriting("vit").plan().rewrite()
    passes = {entry["pass"] for node in case.result.graph.nodes for entry in node.meta.get("provenance", ())}
    assert passes == {"wide", "readout multiplier"}
    assert {step.name for step in PIPELINE} > passes
