"""Attention: heads grow in number, their size and their sharing stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.coupled import TOKENS, checked, dims, free, heads, reason
from tests.graph.widening import facts_of


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v


def attention_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)


@pytest.mark.parametrize("attend", [F.scaled_dot_product_attention, attention_by_hand, attention_by_einsum])
@pytest.mark.parametrize("count", [4, 8], ids=["4x16", "8x8"])
def test_heads_grow_and_their_size_stays(attend: Callable[..., Tensor], count: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (heads(part, count) for part in m.qkv(m.up(x)).split(64, -1))
        return m.head(m.out(attend(q, k, v).transpose(1, 2).reshape(2, 7, 64)))

    found = checked(
        forward,
        TOKENS,
        up=nn.Linear(5, 24),
        qkv=nn.Linear(24, 192),
        out=nn.Linear(64, 16),
        head=nn.Linear(16, 3),
    )
    group = free(found)["qkv.weight[0]"]
    assert (group.size, group.granularity) == (count, 64 // count)
    assert dims(found, "qkv.weight")[0] == f"{192 // count}*qkv.weight[0]"
    assert dims(found, "out.weight")[1] == f"{64 // count}*qkv.weight[0]"
    assert set(free(found)) == {"up.weight[0]", "qkv.weight[0]", "out.weight[0]"}


def test_heads_stacked_in_one_view() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.up(x)
        batch, length, width = x.shape
        q, k, v = m.qkv(x).reshape(batch, length, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return m.head(attention_by_hand(q, k, v).transpose(1, 2).reshape(batch, length, width))

    found = checked(forward, TOKENS, up=nn.Linear(5, 24), qkv=nn.Linear(24, 72), head=nn.Linear(24, 3))
    assert dims(found, "qkv.weight")[0] == "18*qkv.weight[0]"


def repeat_heads(x: Tensor, times: int) -> Tensor:
    batch, count, length, size = x.shape
    return x[:, :, None].expand(batch, count, times, length, size).reshape(batch, count * times, length, size)


@pytest.mark.parametrize("how", ["expand", "flag", "interleave"])
def test_grouped_query_attention_keeps_its_ratio(how: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.up(x)
        q, k, v = heads(m.q(x), 6), heads(m.k(x), 2), heads(m.v(x), 2)
        if how == "expand":
            k, v = repeat_heads(k, 3), repeat_heads(v, 3)
        elif how == "interleave":
            k, v = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=how == "flag")
        return m.head(y.transpose(1, 2).flatten(2))

    found = checked(
        forward,
        TOKENS,
        up=nn.Linear(5, 16),
        q=nn.Linear(16, 24),
        k=nn.Linear(16, 8),
        v=nn.Linear(16, 8),
        head=nn.Linear(24, 3),
    )
    assert dims(found, "q.weight")[0] == "12*q.weight[0]"
    assert dims(found, "k.weight")[0] == dims(found, "v.weight")[0] == "4*q.weight[0]"
    assert free(found)["q.weight[0]"].size == 2


def test_rotary_tables_are_constants() -> None:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.head = nn.Linear(5, 24), nn.Linear(24, 3)
            self.register_buffer("cos", torch.randn(7, 6))
            self.register_buffer("sin", torch.randn(7, 6))

        def forward(self, x: Tensor) -> Tensor:
            q = heads(self.up(x), 4)
            turned = q * self.cos + torch.cat([-q[..., 3:], q[..., :3]], -1) * self.sin
            return self.head(turned.transpose(1, 2).flatten(2))

    _, found = facts_of(Rotary(), TOKENS)
    (group,) = free(found).values()
    assert (group.size, group.granularity, group.residual) == (4, 6, False)


def test_a_single_head_says_that_it_cannot_grow() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))

    layers = {name: nn.Linear(5, 16) for name in "qkv"}
    found = checked(forward, TOKENS, **layers, head=nn.Linear(16, 3))
    assert not free(found)
    assert "single head cannot grow" in reason(found, "q.weight[0]")
