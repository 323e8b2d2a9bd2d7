"""FLOP polynomials agree with torch's own counter, at the traced widths and at others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsify.graph.facts import Facts, facts
from sparsify.graph.trace import trace
from tests.graph.widening import facts_of, grown, model_facts, present, widened
from tests.models import MODELS


def counted(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """FLOPs by torch's counter; it knows nothing of the CPU's fused attention, so that is taken apart."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(*args, **kwargs)
    return counter.get_total_flops()


def total(found: Facts, sizes: dict[str, int]) -> int:
    return sum(layer.flops.evaluate(sizes) for layer in found.layers) + found.other_flops.evaluate(sizes)


@pytest.mark.parametrize("name", [*MODELS, "minilm"])
def test_total_equals_the_counter_at_two_widths(name: str) -> None:
    traced, found = model_facts(name)
    assert found.refusals == ()
    assert total(found, present(found)) == counted(traced.module, traced.args, traced.kwargs) > 0

    sizes = grown(found)
    assert sizes != present(found)
    wide = widened(traced, found, sizes)
    assert total(found, sizes) == counted(wide, traced.args, traced.kwargs)
    assert total(found, sizes) != total(found, present(found))


class Products(nn.Module):
    """Products that are no layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 12)
        self.mix = nn.Parameter(torch.randn(3, 12, 5))
        self.transposed = nn.ConvTranspose2d(4, 8, 2, 2, groups=2)

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.up(x)
        return (
            torch.einsum("btc,hcd->bthd", y, self.mix),
            torch.einsum("bi,bj->bij", y[:, 0], y[:, 1]),
            torch.baddbmm(y @ y.transpose(1, 2), y, y.transpose(1, 2)),
            self.transposed(image),
        )


def test_products_outside_of_layers_are_counted() -> None:
    args = (torch.randn(3, 7, 6), torch.randn(3, 4, 5, 5))
    traced, found = facts_of(Products(), *args)
    assert total(found, present(found)) == counted(traced.module, args, {})
    assert found.other_flops.constant


def test_layers_are_counted_apart() -> None:
    _, found = facts_of(nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(5, 3))
    first, second = found.layers
    width = found.groups[0].id
    assert str(first.flops) == f"30*{width}"
    assert str(second.flops) == f"40*{width}"
    assert found.other_flops == 0


def test_a_shared_layer_counts_for_every_call() -> None:
    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            for _ in range(3):
                x = self.shared(x).relu()
            return self.last(x)

    _, found = facts_of(Repeated(), torch.randn(2, 3))
    assert [layer.fqn for layer in found.layers] == ["first", "shared", "last"]
    assert found.layers[1].flops.evaluate(present(found)) == 3 * (2 * 2 * 6 * 6)


class RareProduct(nn.Module):
    """One product of each rarer kind, beside a layer of 2·2·6·6 FLOPs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(6, 6), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x)
        if self.kind == "mv":
            return torch.mv(y, y[0])
        if self.kind == "dot":
            return torch.dot(y[0], y[1])
        if self.kind == "inner":
            return torch.inner(y, y)
        batches = y.reshape(-1, 2, 3)
        return torch.addbmm(torch.zeros(2, 2), batches, batches.transpose(1, 2))


@pytest.mark.parametrize(
    ("kind", "products"), [("mv", 2 * 6), ("dot", 6), ("inner", 2 * 2 * 6), ("addbmm", 2 * 2 * 3 * 2)]
)
def test_rarer_products_are_counted(kind: str, products: int) -> None:
    found = facts(trace(RareProduct(kind).eval(), (torch.randn(2, 6),), dynamic=False))
    assert total(found, present(found)) == 2 * (2 * 6 * 6 + products)
