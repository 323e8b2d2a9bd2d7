"""Where each tensor of the dense model is in the rewritten one: names, shapes, places of its units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import UnsupportedModelError
from sparsify.graph.facts import Facts
from sparsify.graph.layout import Layout
from sparsify.graph.traced import KeySource, Traced
from sparsify.masks.state import SUFFIX
from sparsify.planning import Plan


@dataclass(frozen=True)
class DenseTensor:
    """One tensor of the dense model.

    Attributes:
        name: Its path in the traced dense model.
        key: Its key in the state_dict of the user's model.
        transposed: Whether the traced tensor is the transpose of the user's.
        shape: Its shape in the traced model.
        layouts: What its dimensions are made of, where any of them may grow; else empty.
    """

    name: str
    key: str
    transposed: bool
    shape: tuple[int, ...]
    layouts: tuple[Layout, ...] = ()

    def places(self, plan: Plan | None) -> tuple[Tensor | None, ...]:
        """For each dimension where its entries are in the rewritten tensor; None where all stay.

        Raises:
            UnsupportedModelError: The graph does not say in which order a growing dimension is made, or it
                shrinks.
        """
        if plan is None or not self.layouts:
            return (None,) * len(self.shape)
        old = {group.id: group.size for group in plan.groups}
        found: list[Tensor | None] = []
        for axis, layout in enumerate(self.layouts):
            if layout.size.evaluate(plan.widths) == self.shape[axis]:
                found.append(None)
                continue
            places = layout.positions(old, plan.widths)
            if places is None:
                raise UnsupportedModelError(
                    f"{self.name}[{axis}]: its weights cannot be kept, since the graph does not say where "
                    f"its units are once {layout.size} grows; keep these groups at their size in the plan, "
                    "or use init='scratch'"
                )
            found.append(places)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` reads back."""
        return {
            "name": self.name,
            "key": self.key,
            "transposed": self.transposed,
            "shape": list(self.shape),
            "layouts": [layout.to_json() for layout in self.layouts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DenseTensor:
        """Reads what `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        layouts = tuple(Layout.from_json(layout) for layout in data["layouts"])
        return cls(data["name"], data["key"], bool(data["transposed"]), tuple(data["shape"]), layouts)


def dense_tensors(traced: Traced, facts: Facts | None = None) -> tuple[DenseTensor, ...]:
    """One entry for every entry of the dense state_dict but masks; layouts where `facts` are given."""
    tensors = traced.module.state_dict()
    layouts = {} if facts is None else facts.layouts
    found = []
    for name, tensor in tensors.items():
        if name.endswith(SUFFIX) and name.removesuffix(SUFFIX) in tensors:
            continue
        source = traced.key_map.get(name, KeySource(name))
        made = layouts.get(name, ())
        grows = any(layout.size.constant is None for layout in made)
        found.append(
            DenseTensor(name, source.key, source.transposed, tuple(tensor.shape), made if grows else ())
        )
    return tuple(found)


def corner(places: tuple[Tensor | None, ...], shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Indices that pick the old entries out of a rewritten tensor: `new[corner(...)]` has shape `shape`."""
    found = []
    for axis, (place, size) in enumerate(zip(places, shape, strict=True)):
        index = torch.arange(size) if place is None else place
        found.append(index.reshape([-1 if axis == other else 1 for other in range(len(shape))]))
    return tuple(found)


def others(place: Tensor | None, size: int) -> Tensor:
    """Entries of a dimension of `size` that no old unit has."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[slice(None) if place is None else place] = False
    return mask.nonzero().reshape(-1)
