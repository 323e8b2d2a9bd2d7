from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import UserError
from sparsify.masks import masked_parameters, verify_masks
from tests.train.tasks import network


def _low_rank(out, inputs, rank=2, seed=0, kernel=()):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, inputs, *kernel, generator=generator)
    up = torch.randn(out, rank, *(1 for _ in kernel), generator=generator)
    return down, up


def test_an_update_lands_under_the_mask_and_zeros_stay_exact():
    model = network()
    before, mask = model[4].weight.detach().clone(), model[4].weight_mask
    down, up = _low_rank(16, 16)
    kept = sparsify.merge_delta(model, {"4.weight": (down, up, 0.5)})
    expected = torch.where(mask, before + 0.5 * up @ down, torch.zeros(()))
    torch.testing.assert_close(model[4].weight.detach(), expected)
    assert torch.count_nonzero(model[4].weight[~mask]) == 0
    whole = 0.5 * up @ down
    assert kept == {"4.weight": pytest.approx(float((whole * mask).norm() / whole.norm()))}
    verify_masks(model)


@pytest.mark.parametrize("adapter", ["", ".default"])
def test_the_state_dict_of_a_peft_adapter_is_read(adapter):
    model, plain = network(), network()
    down, up = _low_rank(16, 6, rank=4)
    name = f"base_model.model.0.lora_{{}}{adapter}.weight"
    sparsify.merge_delta(model, {name.format("A"): down, name.format("B"): up}, alpha=8.0)
    sparsify.merge_delta(plain, {"0.weight": (down, up, 2.0)})
    assert torch.equal(model[0].weight, plain[0].weight)
    assert not torch.equal(model[0].weight, network()[0].weight)


def test_convolutions_and_full_updates():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Linear(4, 4))
    before = [module.weight.detach().clone() for module in model]
    down, up = _low_rank(5, 3, kernel=(3, 3))
    full = torch.randn(4, 4)
    sparsify.merge_delta(model, {"0.weight": (down, up, 1.0), "1.weight": full})
    expected = nn.functional.conv2d(down.transpose(0, 1), up).transpose(0, 1)
    torch.testing.assert_close(model[0].weight.detach() - before[0], expected)
    torch.testing.assert_close(model[1].weight.detach() - before[1], full)


class Conv1D(nn.Module):
    """As transformers writes GPT-2's linear layers: the weight is [in, out]."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.zeros(8))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def test_names_and_orientation_are_those_of_the_dense_model():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Conv1D(), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 8)
    sparse = sparsify.transform(dense, (x,), family="masked", sparsity=0.0001, init="preserve")
    assert any(entry.transposed for entry in sparse.sparsify.parameter_map if entry.old == "2.weight")
    down, up = _low_rank(8, 8)
    for model in (dense, sparse):
        sparsify.merge_delta(model, {"2.weight": (down, up, 0.1)})
        sparsify.merge_delta(model, {"2.weight": torch.arange(64.0).reshape(8, 8) / 64})
    for entry in masked_parameters(sparse).values():
        assert bool(entry.mask.all())
    torch.testing.assert_close(sparse(x), dense(x))


def test_what_does_not_fit_is_refused_and_changes_nothing():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    down, up = _low_rank(16, 16)
    good = {"4.weight": (down, up, 1.0)}
    for updates, alpha, message in (
        ({}, None, "no update"),
        (good | {"5.weight": down}, None, r"no parameter '5\.weight'"),
        (good | {"0.weight": torch.zeros(2, 2)}, None, r"shape \(2, 2\), the weight \(16, 6\)"),
        (good | {"0.weight": torch.full((16, 6), torch.nan)}, None, "NaN"),
        (good | {"0.weight": (up, up, 1.0)}, None, "no tensor and no"),
        ({"4.lora_A.weight": down, "4.lora_B.weight": up}, None, "lora_alpha"),
        ({"4.lora_A.weight": down}, 1.0, r"lacks its lora_B"),
        ({"4.lora_A.weight": down, "4.lora_magnitude_vector.weight": up}, 1.0, "DoRA"),
    ):
        with pytest.raises(UserError, match=message):
            sparsify.merge_delta(model, updates, alpha=alpha)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_widened_layer_takes_no_update_of_the_dense_one():
    dense = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    wide = sparsify.transform(dense, (torch.randn(2, 8),), sparsity=0.75)
    with pytest.raises(UserError, match=r"'2\.weight' of the dense model has become"):
        sparsify.merge_delta(wide, {"2.weight": torch.zeros(32, 32)})
