"""Where old units are once widths grow: sections, heads, halves and shuffles keep their own order."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify.graph.facts import Facts, facts
from sparsify.graph.layout import Layout
from sparsify.graph.poly import Poly
from sparsify.graph.trace import trace


class Fused(nn.Module):
    """Attention with one projection for queries, keys and values; the order of its outputs varies."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.qkv, self.out, self.order = nn.Linear(8, 24), nn.Linear(8, 8), order

    def forward(self, x):
        b, t, _ = x.shape
        if self.order == "sections":
            parts = [part.view(b, t, 2, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)]
        else:
            heads = self.qkv(x).view(b, t, 2, 12).transpose(1, 2)
            parts = list(heads.split(4, -1))
        y = nn.functional.scaled_dot_product_attention(*parts)
        return x + self.out(y.transpose(1, 2).reshape(b, t, -1))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(3, 4)

    def forward(self, x):
        gate, value = self.up(x).chunk(2, -1)
        return x + self.down(gate.sigmoid() * value)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 2), nn.Linear(4, 3), nn.Linear(7, 4)

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return x + self.c(torch.cat([a, b, a], -1).relu())


class Shuffled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        y = self.b(self.a(x))
        n, c, h, w = y.shape
        return x + self.c(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 1), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


def _facts(model: nn.Module, x: torch.Tensor) -> Facts:
    return facts(trace(model.eval(), (x,), {}, dynamic=True))


def _places(found: Facts, name: str, axis: int, new: int) -> list[int]:
    layout = found.layouts[name][axis]
    (symbol,) = layout.size.symbols
    old = {group.id: group.size for group in found.groups}
    places = layout.positions(old, {**old, symbol: new})
    assert places is not None
    return places.tolist()


def test_three_sections_of_heads():
    found = _facts(Fused("sections"), torch.randn(2, 5, 8))
    places = _places(found, "qkv.weight", 0, 3)
    assert places == [*range(8), *range(12, 20), *range(24, 32)]
    assert _places(found, "out.weight", 1, 3) == list(range(8))


def test_heads_that_hold_three_parts_each():
    found = _facts(Fused("heads"), torch.randn(2, 5, 8))
    assert _places(found, "qkv.weight", 0, 3) == list(range(24))


def test_halves_of_a_gated_layer():
    found = _facts(Gated(), torch.randn(2, 4))
    assert _places(found, "up.weight", 0, 5) == [0, 1, 2, 5, 6, 7]
    assert _places(found, "up.bias", 0, 5) == [0, 1, 2, 5, 6, 7]


def test_a_concatenation_with_one_tensor_twice():
    found = _facts(Joined(), torch.randn(2, 4))
    layout = found.layouts["c.weight"][1]
    old = {group.id: group.size for group in found.groups}
    a = next(group.id for group in found.groups if "a.weight[0]" in group.members)
    assert layout.positions(old, {**old, a: 4}).tolist() == [0, 1, 4, 5, 6, 7, 8]


def test_shuffled_channels():
    found = _facts(Shuffled(), torch.randn(2, 3, 2, 2))
    assert _places(found, "a.weight", 0, 4) == [0, 1, 2, 4, 5, 6]
    assert _places(found, "c.weight", 1, 4) == [0, 1, 2, 3, 4, 5]


def test_channels_flattened_with_their_places():
    found = _facts(Flat(), torch.randn(2, 1, 2, 2))
    assert _places(found, "head.weight", 1, 5) == list(range(12))


class TestLayout:
    n, m = Poly.symbol("n"), Poly.symbol("m")

    def test_descriptions_that_disagree_say_nothing(self):
        size = Layout("size", self.n)
        two = Layout("size", Poly(2))
        outer = Layout("product", self.n * 2, (two, size))
        inner = Layout("product", self.n * 2, (size, two))
        both = Layout("any", self.n * 2, (outer, inner))
        assert both.positions({"n": 3}, {"n": 4}) is None
        assert both.positions({"n": 3}, {"n": 3}).tolist() == list(range(6))

    def test_an_unknown_order_says_nothing_unless_nothing_grows(self):
        unknown = Layout("unknown", self.n * 3)
        assert unknown.positions({"n": 2}, {"n": 3}) is None
        assert unknown.positions({"n": 2}, {"n": 2}).tolist() == list(range(6))

    def test_a_shrinking_width_has_no_places(self):
        assert Layout("size", self.n).positions({"n": 3}, {"n": 2}) is None

    def test_json(self):
        parts = (Layout("size", self.n), Layout("size", self.m))
        layout = Layout("sum", self.n + self.m, parts)
        assert Layout.from_json(layout.to_json()) == layout
        with pytest.raises(ValueError, match="kind"):
            Layout.from_json(["other", [], []])
