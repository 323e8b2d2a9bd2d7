"""Groups hold what makes a unit, and a unit whose group is zero leaves the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify
from sparsify.dst import find_groups
from sparsify.dst.group_parts import AxisPart
from sparsify.dst.group_units import unit_groups
from sparsify.dst.groups import Groups, GroupSet
from sparsify.errors import UserError
from sparsify.masks import set_mask
from tests.models import MODELS, FlattenCNN, ResNet, randomise_statistics
from tests.passes.narrowing import Narrowing


def zero_first(groups: Groups, places: tuple[int, ...] = (1,)) -> None:
    """Zeroes some units of every set."""
    factors = torch.ones(len(groups))
    for one in groups.sets:
        factors[[one.first + place for place in places]] = 0
    groups.scale(factors)


@pytest.mark.parametrize(
    ("name", "kind", "sets"),
    [
        ("flatten_cnn", "units", 3),
        ("flatten_cnn", "channels", 1),
        ("resnet", "units", 4),
        ("bert", "units", 4),
    ],
)
def test_a_unit_whose_group_is_zero_leaves_the_model(name, kind, sets):
    model = MODELS[name].model()
    args, kwargs = MODELS[name].example(2, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    case = Narrowing(model, *args, **kwargs)
    case.traced = sparsify.trace(model, args, kwargs)
    groups = unit_groups(model, case.traced, kind, lambda fqn: True)
    assert len(groups.sets) == sets
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    zero_first(groups)
    assert float(groups.norms()[[one.first + 1 for one in groups.sets]].sum()) == 0
    case.narrow().loses({one.id: (1,) for one in groups.sets}).is_smaller()
    if name != "bert":  # integers and masks among its inputs
        case.keeps_outputs()


def test_a_filter_is_its_rows_its_bias_and_the_gains_and_shifts_of_its_norms():
    model = randomise_statistics(ResNet())
    groups = find_groups(model, "filters", example=torch.randn(2, 1, 8, 8))
    stream = next(one for one in groups.sets if one.id == "stem.weight[0]")
    members = [model.stem.weight[3], model.bn.weight[3], model.bn.bias[3]]
    members += [model.layer1.conv2.weight[3], model.layer1.bn2.weight[3], model.layer1.bn2.bias[3]]
    expected = torch.cat([member.flatten() for member in members]).norm()
    torch.testing.assert_close(groups.norms()[stream.first + 3].float(), expected)
    assert groups.sizes[stream.first + 3] == 9 + 1 + 1 + 144 + 1 + 1


def test_kinds_choose_among_the_units():
    model, example = FlattenCNN(), torch.randn(2, 1, 8, 8)
    assert [one.id for one in find_groups(model, "neurons", example=example).sets] == ["fc1.weight[0]"]
    filters = find_groups(model, "filters", example=example)
    assert [one.id for one in filters.sets] == ["conv1.weight[0]", "pointwise.weight[0]"]
    assert {part.fqn for part in filters.parts} >= {"depthwise.weight", "depthwise.bias"}
    only = find_groups(model, "units", example=example, keep_dense=["conv*"])
    assert [one.id for one in only.sets] == ["pointwise.weight[0]", "fc1.weight[0]"]
    assert any("left out" in refusal.reason for refusal in only.refusals)


def test_heads_and_inner_neurons_of_a_transformer():
    model = MODELS["llama"].model()
    args, kwargs = MODELS["llama"].example(2, 8)
    traced = sparsify.trace(model, args, kwargs)
    heads = unit_groups(model, traced, "heads", lambda fqn: True)
    assert [one.count for one in heads.sets] == [2, 2]  # key-value heads, each with its two query heads
    assert {part.fqn.split(".")[-2] for part in heads.parts} == {"q_proj", "k_proj", "v_proj"}
    inner = unit_groups(model, traced, "ffn", lambda fqn: True)
    assert {part.fqn.split(".")[-2] for part in inner.parts} == {"gate_proj", "up_proj"}


def test_units_that_narrow_could_not_take_out_are_not_offered():
    """Without gain and shift, a norm makes a constant of a dead channel, and the padding behind it shows."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 6, 3, padding=1), nn.Flatten()
    )
    model[1].running_mean.normal_()
    with pytest.raises(UserError, match="a unit of zeros leaves a constant"):
        find_groups(
            model.append(nn.Linear(6 * 36, 2)), "filters", example=torch.randn(2, 1, 8, 8), only=["0"]
        )


def test_a_weight_that_the_trace_transposes_is_refused_by_name():
    model = MODELS["gpt2"].model()
    args, kwargs = MODELS["gpt2"].example(2, 8)
    with pytest.raises(UserError, match=r"c_attn.*stored in another form"):
        unit_groups(model, sparsify.trace(model, args, kwargs), "heads", lambda fqn: True)


def test_a_plain_module_without_a_graph_has_the_outputs_of_its_layers():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3)
    )
    groups = find_groups(model)
    assert [(one.id, one.kind, one.count) for one in groups.sets] == [
        ("0.weight[0]", "filters", 4),
        ("3.weight[0]", "neurons", 5),
    ]
    assert groups.sizes.tolist() == [9 + 1 + 2] * 4 + [17] * 5
    with pytest.raises(UserError, match="example"):
        find_groups(model, "heads")
    assert [
        one.id for one in find_groups(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3)), "channels").sets
    ] == ["1.weight[1]"]


@pytest.mark.parametrize("kind", ["weights", "2x4"])
def test_tiles_cover_every_weight_once(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(3, 4, 1), nn.Linear(8, 2))
    groups = find_groups(model, kind)
    rows, columns = (2, 4) if kind == "2x4" else (1, 1)
    weights = [model[0].weight, model[2].weight] if kind == "2x4" else [model[i].weight for i in range(3)]
    assert len(groups) == sum(weight.numel() for weight in weights) // (rows * columns)
    assert (groups.sizes == rows * columns).all()
    assert float(groups.norms().square().sum()) == pytest.approx(
        sum(float(weight.detach().square().sum()) for weight in weights), rel=1e-5
    )
    if kind == "2x4":
        assert [refusal.fqn for refusal in groups.refusals] == ["1"]
        torch.testing.assert_close(groups.norms()[1].float(), model[0].weight[0:2, :, 0, 1].norm())
    kept = torch.ones(len(groups), dtype=torch.bool)
    kept[1] = False
    mask = groups.masks(kept)[id(model[0].weight)]
    assert int((~mask).sum()) == rows * columns
    factors = kept.double()
    groups.scale(factors)
    assert (model[0].weight[~mask] == 0).all()
    assert (model[0].weight[mask] != 0).all()


def test_masked_weights_count_with_their_active_entries():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, :5] = False
    set_mask(model[0], "weight", mask)
    assert find_groups(model).sizes.tolist() == [2, 7, 7, 7]


def test_overlap_is_refused():
    layer = nn.Linear(3, 2)
    rows = AxisPart("weight", layer, "weight", 0, torch.tensor([0, 1]))
    columns = AxisPart("weight", layer, "weight", 1, torch.tensor([2, -1, -1]))
    with pytest.raises(UserError, match="groups overlap in weight"):
        Groups([GroupSet("weight", "neurons", 0, 3)], [rows, columns])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "layers"}, "unknown kind of groups 'layers'"),
        ({"kind": "0x4"}, "empty"),
        ({"only": ["nothing.*"]}, "matches no layer"),
        ({"kind": "filters"}, "no groups of the kind"),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        find_groups(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), **options)
