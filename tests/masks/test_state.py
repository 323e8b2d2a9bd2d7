from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from sparsify.errors import SparsifyError, UserError
from sparsify.masks import (
    attach_hooks,
    gradient_mask,
    masked_parameters,
    random_mask,
    set_mask,
    verify_masks,
)


def masked_mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))
    generator = torch.Generator().manual_seed(seed)
    set_mask(model[0], "weight", random_mask((10, 6), 20, generator))
    set_mask(model[2], "weight", random_mask((4, 10), 13, generator))
    return model


def test_set_mask_zeroes_the_weight_and_shows_in_the_state_dict():
    model = masked_mlp()
    assert {"0.weight_mask", "2.weight_mask"} <= set(model.state_dict())
    for entry in masked_parameters(model).values():
        assert torch.equal(entry.param != 0, entry.mask)
    assert masked_parameters(model)["0.weight"].density == 20 / 60


def dense_gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the sum of squares without any hook, on copies of the parameters."""
    free = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, free, (x,)).square().sum().backward()
    return {name: p.grad for name, p in free.items()}


def test_gradients_are_masked_and_dense_ones_are_collected_on_request():
    model, x = masked_mlp(), torch.randn(5, 6)
    weight, mask = model[0].weight, model[0].get_buffer("weight_mask")
    dense = dense_gradients(model, x)["0.weight"]
    assert dense[~mask].abs().sum() > 0, "the comparison must see gradients outside the mask"
    collected = []
    gradient_mask(weight).collector = lambda grad: collected.append(grad.clone())
    for _ in range(2):
        model(x).square().sum().backward()
    gradient_mask(weight).collector = None
    assert torch.equal(weight.grad, 2 * dense * mask)
    assert torch.equal(torch.stack(collected), torch.stack([dense, dense]))
    model(x).square().sum().backward()
    assert len(collected) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_not_finite_stays_inside_the_mask(dtype):
    layer = nn.Linear(4, 3, bias=False, dtype=dtype)
    mask = torch.tensor([[True, False, True, False]]).expand(3, 4)
    set_mask(layer, "weight", mask)
    given = torch.tensor([torch.nan, torch.nan, -torch.inf, torch.inf], dtype=dtype).expand(3, 4)
    layer.weight.backward(given)
    assert torch.equal(layer.weight.grad[~mask], torch.zeros(6, dtype=dtype))
    assert torch.equal(layer.weight.grad.isnan(), given.isnan() & mask)
    assert torch.equal(layer.weight.grad.isinf(), given.isinf() & mask)


def test_second_derivatives_pass_the_hook():
    layer = nn.Linear(2, 1, bias=False)
    set_mask(layer, "weight", torch.tensor([[True, False]]))
    x = torch.tensor([[3.0, 5.0]])
    layer(x).pow(3).sum().backward(create_graph=True)
    first = layer.weight.grad
    assert first.requires_grad
    (second,) = torch.autograd.grad(first.sum(), layer.weight)
    # d/dw0 of 3 (w · x)² x0 is 6 (w · x) x0²; the hook masks the second gradient too.
    expected = 6 * float(layer(x).detach()) * 9.0
    assert second.tolist() == [[pytest.approx(expected), 0.0]]


def test_a_non_finite_gradient_does_not_leak_past_the_mask():
    model = masked_mlp()
    model(torch.full((2, 6), torch.inf)).sum().backward()
    assert not model[0].weight.grad[model[0].get_buffer("weight_mask")].isfinite().all()
    assert (model[0].weight.grad[~model[0].get_buffer("weight_mask")] == 0).all()


def test_a_plain_deepcopy_needs_attach_hooks_and_then_follows_its_own_mask():
    model, x = masked_mlp(), torch.randn(5, 6)
    copied = copy.deepcopy(model)
    attach_hooks(copied)
    attach_hooks(copied)
    set_mask(model[0], "weight", torch.zeros(10, 6, dtype=torch.bool))
    copied(x).square().sum().backward()
    mask = copied[0].get_buffer("weight_mask")
    assert int(mask.sum()) == 20
    assert copied[0].weight.grad[mask].abs().sum() > 0
    assert (copied[0].weight.grad[~mask] == 0).all()


def test_masks_follow_replaced_buffers_and_loaded_state():
    model, x = masked_mlp(), torch.randn(5, 6, dtype=torch.float64)
    other = masked_mlp(seed=7)
    model.load_state_dict(other.state_dict())
    model.double()
    model(x).square().sum().backward()
    mask = other[0].get_buffer("weight_mask")
    assert (model[0].weight.grad[~mask] == 0).all()
    assert model[0].weight.grad[mask].abs().sum() > 0


def test_a_parameter_frozen_when_masked_is_masked_once_unfrozen():
    layer = nn.Linear(4, 3)
    layer.weight.requires_grad_(False)
    mask = random_mask((3, 4), 5, torch.Generator().manual_seed(0))
    set_mask(layer, "weight", mask)
    assert not layer.weight.requires_grad
    layer.weight.requires_grad_(True)
    layer(torch.ones(2, 4)).sum().backward()
    assert torch.equal(layer.weight.grad != 0, mask)


def test_a_tied_parameter_is_one_entry_and_one_hook():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    mask = random_mask((5, 3), 6, torch.Generator().manual_seed(0))
    set_mask(model.embed, "weight", mask)
    assert list(masked_parameters(model)) == ["embed.weight"]
    dense = []
    gradient_mask(model.head.weight).collector = lambda grad: dense.append(grad.clone())
    model.head(model.embed(torch.arange(5))).sum().backward()
    assert torch.equal(model.embed.weight.grad, dense[0] * mask)


def test_verify_names_the_parameter_that_was_written_to():
    model = masked_mlp()
    verify_masks(model)
    with torch.no_grad():
        model[2].weight.fill_(1.0)
    with pytest.raises(SparsifyError, match=r"2\.weight \(27 weights\)"):
        verify_masks(model)


def test_wrong_masks_are_refused():
    layer = nn.Linear(4, 3)
    with pytest.raises(UserError, match="no parameter 'gain'"):
        set_mask(layer, "gain", torch.ones(3, dtype=torch.bool))
    with pytest.raises(UserError, match=r"bool of shape \(3, 4\)"):
        set_mask(layer, "weight", torch.ones(4, 3, dtype=torch.bool))
    with pytest.raises(UserError, match=r"bool of shape"):
        set_mask(layer, "weight", torch.ones(3, 4))
    with pytest.raises(SparsifyError, match="no mask hook"):
        gradient_mask(layer.weight)


def test_hooks_keep_no_module_alive():
    model = masked_mlp()
    dead = weakref.ref(model[0])
    del model
    gc.collect()
    assert dead() is None
