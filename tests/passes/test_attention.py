"""Attentions are found however they are written, with their head size and the model's own factor."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsify
from sparsify.errors import UserError
from sparsify.passes.attention import attentions
from tests.models import MODELS

HEADS, SIZE = 2, 8


class Written(nn.Module):
    """One attention, its products written by `product`, and a product that is none."""

    def __init__(self, product) -> None:
        super().__init__()
        self.qkv, self.out, self.product = nn.Linear(16, 48), nn.Linear(16, 4), product

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = self.product(q, k, v).transpose(1, 2).flatten(-2)
        return self.out(y) @ torch.ones(4, 4) + (self.out(y) @ self.out(y).transpose(1, 2)).sum(
            -1, keepdim=True
        )


def flat(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    return (torch.bmm(q, k.transpose(1, 2)) / 3.0).softmax(-1).bmm(v).unflatten(0, (-1, HEADS))


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = (q * 0.5) @ (0.25 * k).transpose(-1, -2)
    logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -1e9)
    return F.softmax(logits * 4 + 1.0, -1) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * SIZE**-0.5
    return torch.einsum("bhij,bhjd->bhid", logits.softmax(-1), v)


class OfInputs(nn.Module):
    """Inputs that are called as operators are."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, t: Tensor, mul: Tensor) -> Tensor:
        return self.head((t @ mul.transpose(-1, -2)).softmax(-1) @ mul)


def test_inputs_with_names_of_operators_are_no_operators():
    traced = sparsify.trace(OfInputs().eval(), (torch.zeros(2, 5, 8), torch.zeros(2, 5, 8)))
    assert [(one.head_size, one.scale) for one in attentions(traced.module)] == [(8, 1.0)]


def added(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Alibi as Bloom adds it, and a bias on scaled queries."""
    q, k, v = ((part * 0.5 + torch.ones(SIZE)).flatten(0, 1) for part in (q, k, v))
    logits = torch.baddbmm(torch.zeros(1, 1, 1), q, k.transpose(1, 2), beta=1.0, alpha=0.5)
    return logits.softmax(-1).bmm(v).unflatten(0, (-1, HEADS))


def cosine(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
    return (logits * 10.0).softmax(-1) @ v


WRITTEN = {
    "baddbmm behind a bias": (added, 0.125),
    "fused": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v), SIZE**-0.5),
    "fused with a factor": (lambda q, k, v: F.scaled_dot_product_attention(q * 0.5, k, v, scale=0.3), 0.15),
    "spelled out": (lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1) @ v, 1.0),
    "flat": (flat, 1 / 3),
    "masked": (masked, 0.5),
    "einsum": (einsum, SIZE**-0.5),
    "without a softmax": (lambda q, k, v: (q @ k.transpose(-1, -2)) @ v, None),
}


@pytest.mark.parametrize(("product", "scale"), WRITTEN.values(), ids=WRITTEN)
def test_however_it_is_written(product, scale):
    traced = sparsify.trace(Written(product).eval(), (torch.zeros(2, 5, 16),))
    found = [(one.head_size, one.scale) for one in attentions(traced.module)]
    assert found == ([] if scale is None else [(SIZE, pytest.approx(scale))])


def test_cosine_attention_has_no_factor_and_needs_a_base_of_its_head_size():
    traced = sparsify.trace(Written(cosine).eval(), (torch.zeros(2, 5, 16),))
    (attention,) = attentions(traced.module)
    assert math.isnan(attention.scale)
    base = sparsify.api.as_base(traced, (), None)
    sparsify.transform(traced, base=base, family="masked", sparsity=0.0, only=("qkv",))
    small = type(base)(base.tensors, (type(base.attentions[0])(SIZE // 2, None),))
    with pytest.raises(UserError, match=r"heads of 8 and the base heads of 4.*no constant"):
        sparsify.transform(traced, base=small, family="masked", sparsity=0.0, only=("qkv",))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "vit"])
def test_models_of_transformers_have_one_a_layer(name):
    args, kwargs = MODELS[name].example(2, 8)
    found = attentions(sparsify.trace(MODELS[name].model(), args, kwargs).module)
    assert [(one.head_size, one.scale) for one in found] == [(8, pytest.approx(1 / math.sqrt(8)))] * 2


@pytest.mark.parametrize("product", [einsum, flat, masked], ids=["einsum", "flat", "masked"])
def test_queries_are_multiplied_where_the_head_size_differs(product):
    """Twice the head size of a base whose factor does not depend on it: the logits are halved."""
    traced = sparsify.trace(Written(product).eval(), (torch.zeros(2, 5, 16),))
    base = sparsify.api.as_base(traced, (), None)
    (attention,) = base.attentions
    small = type(base)(base.tensors, (type(attention)(SIZE // 2, attention.scale),))
    model = sparsify.transform(traced, base=small, family="masked", sparsity=0.0, only=("qkv",))
    assert [one.factor for one in model.sparsify.scaling.attention] == [0.5]
    reference = Written(lambda q, k, v: product(q * 0.5, k, v))
    reference.load_state_dict({key: model.state_dict()[key] for key in reference.state_dict()})
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    hidden = {}
    for made in (model, reference):
        made.get_submodule("out").register_forward_pre_hook(
            lambda module, args, made=made: hidden.setdefault(id(made), args[0])
        )
        made.eval()(x)
    inputs = list(hidden.values())
    factor = model.sparsify.scaling["out.weight"].forward
    torch.testing.assert_close(inputs[0] / factor, inputs[1], rtol=1e-5, atol=1e-6)
