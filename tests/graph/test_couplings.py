"""Which dimensions grow together, which stay, and why: one structure a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.graph.facts import Facts, WidthGroup, describe
from tests.graph.widening import facts_of, grown, widened


class Net(nn.Module):
    """Layers by name and a forward function."""

    def __init__(self, forward: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._forward = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self._forward(self, *inputs)


def checked(forward: Callable[..., Any], *inputs: Tensor, **layers: nn.Module | nn.Parameter) -> Facts:
    """Facts of a network, after a run of it with every free width at a size of its own."""
    model = Net(forward, **layers)
    traced, found = facts_of(model, *inputs)
    wide = widened(traced, found, grown(found))
    with torch.no_grad():
        expected, got = model(*inputs), wide(*inputs)
    assert got.shape == expected.shape
    assert all(group.pinned is None or group.pinned.strip() for group in found.groups)
    return found


def free(found: Facts) -> dict[str, WidthGroup]:
    return {group.id: group for group in found.groups if group.pinned is None}


def dims(found: Facts, name: str) -> list[str]:
    return [str(size) for size in found.parameters[name]]


def reason(found: Facts, member: str) -> str:
    (group,) = (group for group in found.groups if member in group.members)
    return str(group.pinned)


IMAGE = torch.randn(2, 3, 8, 8)
TOKENS = torch.randn(2, 7, 5)


def conv(inputs: int, outputs: int, size: int = 3, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **settings)


def heads(x: Tensor, count: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def test_a_residual_stream_is_one_group() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.norm(m.stem(x))
        x = F.relu(x + m.b(F.relu(m.a(x))))
        return m.head(F.adaptive_avg_pool2d(x, 1).flatten(1))

    found = checked(
        forward,
        IMAGE,
        stem=conv(3, 8),
        norm=nn.BatchNorm2d(8),
        a=conv(8, 12),
        b=conv(12, 8),
        head=nn.Linear(8, 4),
    )
    groups = free(found)
    assert set(groups) == {"stem.weight[0]", "a.weight[0]"}
    stream = groups["stem.weight[0]"]
    assert {"b.weight[0]", "norm.weight[0]", "a.weight[1]", "head.weight[1]"} < set(stream.members)
    assert stream.residual
    assert not groups["a.weight[0]"].residual
    assert dims(found, "norm.running_mean") == ["stem.weight[0]"]
    assert reason(found, "head.weight[0]") == "width of a model output"
    assert "fixed size, 3" in reason(found, "stem.weight[1]")


def test_flattened_channels_keep_their_coefficient() -> None:
    found = checked(lambda m, x: m.fc(m.stem(x).flatten(1)), IMAGE, stem=conv(3, 8), fc=nn.Linear(512, 4))
    assert dims(found, "fc.weight") == ["4", "64*stem.weight[0]"]
    assert free(found)["stem.weight[0]"].granularity == 1


def test_depthwise_groups_follow_channels_and_others_stay() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.depthwise(m.grouped(m.stem(x))).mean((2, 3)))

    found = checked(
        forward,
        IMAGE,
        stem=conv(3, 8),
        grouped=conv(8, 12, groups=4),
        depthwise=conv(12, 24, groups=12),
        head=nn.Linear(24, 4),
    )
    _, grouped, depthwise, _ = found.layers
    assert grouped.groups == 4
    assert {free(found)[name].granularity for name in ("stem.weight[0]", "grouped.weight[0]")} == {4}
    assert str(depthwise.groups) == "4*grouped.weight[0]"
    assert dims(found, "depthwise.weight")[:2] == ["8*grouped.weight[0]", "1"]


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


def test_joins_are_sums_and_chunks_are_halves() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.stem(x).chunk(2, 1)
        y = torch.cat([a, m.norm(m.branch(b)), m.other(x)], 1)
        return m.head(F.glu(m.mix(y), 1).mean((2, 3)))

    found = checked(
        forward,
        IMAGE,
        stem=conv(3, 16),
        branch=conv(8, 6),
        norm=nn.GroupNorm(3, 6),
        other=conv(3, 5),
        mix=conv(19, 12),
        head=nn.Linear(6, 4),
    )
    assert dims(found, "mix.weight")[1] == "3*branch.weight[0] + other.weight[0] + stem.weight[0]"
    assert dims(found, "stem.weight")[0] == "2*stem.weight[0]"
    assert free(found)["branch.weight[0]"].granularity == 3


def test_channels_are_shuffled_in_a_fixed_number_of_groups() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        batch, channels, height, width = x.shape
        x = (
            x.view(batch, 4, channels // 4, height, width)
            .transpose(1, 2)
            .reshape(batch, channels, height, width)
        )
        return m.head(x.mean((2, 3)))

    found = checked(forward, IMAGE, stem=conv(3, 24), head=nn.Linear(24, 4))
    assert dims(found, "stem.weight")[0] == "4*stem.weight[0]"


def test_sections_cut_by_slices_grow_apart() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.up(x)
        return m.a(y[..., :10]) + m.b(y[..., 10:-8]) + m.c(y[..., -8:])

    found = checked(
        forward, TOKENS, up=nn.Linear(5, 24), a=nn.Linear(10, 3), b=nn.Linear(6, 3), c=nn.Linear(8, 3)
    )
    assert sorted(group.size for group in free(found).values()) == [6, 8, 10]
    assert {literal.path for literal in found.literals} == {(2,), (3,)}
    assert any("-" in str(literal.value) for literal in found.literals)


def test_padded_shortcut() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head((m.down(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))).mean((2, 3)))

    found = checked(forward, IMAGE, stem=conv(3, 8), down=conv(8, 16, stride=2), head=nn.Linear(16, 4))
    assert len(free(found)) == 3


def test_tensors_made_from_sizes_follow() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.up(x)
        state = y.new_zeros(2, 7, 24) + torch.full((24,), 0.5) + torch.zeros(y.shape[-1])
        return m.head(y + state)

    found = checked(forward, TOKENS, up=nn.Linear(5, 24), head=nn.Linear(24, 3))
    assert len(found.literals) == 3
    assert set(free(found)) == {"up.weight[0]"}


def test_token_mixing_keeps_the_number_of_tokens() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x).flatten(2).transpose(1, 2)
        x = x + m.t2(F.gelu(m.t1(m.norm(x).transpose(1, 2)))).transpose(1, 2)
        return m.head(x.mean(1))

    found = checked(
        forward,
        IMAGE,
        stem=nn.Conv2d(3, 16, 4, 4),
        norm=nn.LayerNorm(16),
        t1=nn.Linear(4, 10),
        t2=nn.Linear(10, 4),
        head=nn.Linear(16, 3),
    )
    assert set(free(found)) == {"stem.weight[0]", "t1.weight[0]"}
    assert "fixed size, 4" in reason(found, "t2.weight[0]")


def test_embeddings_and_ties() -> None:
    def forward(m: Any, ids: Tensor) -> Tensor:
        return F.linear(m.norm(m.table(ids)), m.table.weight)

    found = checked(forward, torch.randint(0, 11, (2, 7)), table=nn.Embedding(11, 8), norm=nn.LayerNorm(8))
    assert set(free(found)) == {"table.weight[1]"}
    assert reason(found, "table.weight[0]") == "number of rows of an embedding"


def test_free_parameters_couple() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.up(x)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * m.scale
        return m.head(torch.cat([m.token.expand(2, -1, -1), y], 1))

    found = checked(
        forward,
        TOKENS,
        up=nn.Linear(5, 24),
        scale=nn.Parameter(torch.ones(24)),
        token=nn.Parameter(torch.zeros(1, 1, 24)),
        head=nn.Linear(24, 3),
    )
    (group,) = free(found).values()
    assert {"scale[0]", "token[2]", "head.weight[1]"} < set(group.members)


def test_an_unknown_operator_pins_what_it_touches_and_nothing_else() -> None:
    found = checked(
        lambda m, x: m.head(torch.linalg.qr(m.up(x), "complete")[1] + m.b(F.relu(m.a(m.up(x))))),
        TOKENS,
        up=nn.Linear(5, 16),
        a=nn.Linear(16, 12),
        b=nn.Linear(12, 16),
        head=nn.Linear(16, 3),
    )
    (refusal,) = found.refusals
    assert refusal.rule == "unknown-operator"
    assert "aten.linalg_qr.default" in refusal.reason
    assert set(free(found)) == {"a.weight[0]"}
    assert "aten.linalg_qr.default" in reason(found, "up.weight[0]")


def test_a_refusal_names_the_module() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(m.recurrent(m.up(x))[0])

    found = checked(
        forward,
        TOKENS,
        up=nn.Linear(5, 16),
        recurrent=nn.LSTM(16, 12, batch_first=True),
        head=nn.Linear(12, 3),
    )
    assert [(refusal.fqn, refusal.rule) for refusal in found.refusals] == [("recurrent", "recurrent")]
    assert "LSTM" in found.refusals[0].reason
    assert not free(found)


def test_a_width_that_divides_its_own_sum_follows_or_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.up(x)
        y = y - y.sum(-1, keepdim=True) / y.shape[-1]
        z = m.mid(y)
        return m.head(z * z.norm(dim=-1, keepdim=True).add(1.0) * 24**-0.5)

    found = checked(forward, TOKENS, up=nn.Linear(5, 16), mid=nn.Linear(16, 24), head=nn.Linear(24, 3))
    assert set(free(found)) == {"up.weight[0]"}
    assert [str(literal.value) for literal in found.literals] == ["up.weight[0]"]
    assert "scales a sum over it" in reason(found, "mid.weight[0]")


def test_a_single_head_says_that_it_cannot_grow() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.head(F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x)))

    layers = {name: nn.Linear(5, 16) for name in "qkv"}
    found = checked(forward, TOKENS, **layers, head=nn.Linear(16, 3))
    assert not free(found)
    assert "single head cannot grow" in reason(found, "q.weight[0]")


def test_places_in_a_width_pin_it() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.up(x)
        return m.head(m.mid(y[..., 0:1]) + m.mid(y.topk(1, -1).values))

    found = checked(forward, TOKENS, up=nn.Linear(5, 16), mid=nn.Linear(1, 12), head=nn.Linear(12, 3))
    assert set(free(found)) == {"mid.weight[0]"}
    assert "topk" in reason(found, "up.weight[0]")


def test_an_ambiguous_view_is_refused() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.outer(m.a(x), m.b(x)).reshape(9, 16)
        return m.head(y.sum(0))

    found = checked(forward, torch.randn(5), a=nn.Linear(5, 12), b=nn.Linear(5, 12), head=nn.Linear(16, 3))
    assert [refusal.rule for refusal in found.refusals] == ["ambiguous-shape"]
    assert "head" not in str(sorted(free(found)))


def test_description_is_plain_and_complete() -> None:
    found = checked(lambda m, x: m.fc(m.stem(x).flatten(1)), IMAGE, stem=conv(3, 8), fc=nn.Linear(512, 4))
    rows = describe(found)
    assert rows[0]["id"] == "stem.weight[0]"
    assert rows[0]["width"] == 8
    assert [row["pinned"] is None for row in rows] == [True, False, False]
    assert {member for row in rows for member in row["members"]} == {
        f"{name}[{axis}]" for name in ("stem.weight", "fc.weight") for axis in (0, 1)
    } | {"stem.bias[0]", "fc.bias[0]"}
