"""Which dimensions grow together, which stay, and why: one structure a test."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.graph.facts import describe
from tests.graph.coupled import IMAGE, TOKENS, checked, conv, dims, free, reason


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
