"""Small networks by a forward function, and what the facts say of their widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.graph.facts import Facts, WidthGroup
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
