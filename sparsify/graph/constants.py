"""What every node computes whatever the inputs are: constants, element by element, as far as they are known.

A channel whose weights are all zero still emits something: an activation of its bias, the β of a batch norm.
Known values are carried through the graph as tensors of their own. A dimension along which nothing changes
(batch, positions, pixels) has size 1 there, so what is left is usually one number for each channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from sparsify.graph.dimensions import operator_name
from sparsify.graph.extents import Extents
from sparsify.graph.movement import apply, pads_a_number, tensor_inputs


@dataclass(frozen=True)
class Known:
    """Values that do not depend on the inputs.

    Attributes:
        value: The values, 0 where unknown; every dimension has its own size, or 1 where nothing changes.
        mask: Of the same shape; where `value` is known.
    """

    value: Tensor
    mask: Tensor

    @classmethod
    def nothing(cls, rank: int, dtype: torch.dtype = torch.float32) -> Known:
        """A tensor of which nothing is known."""
        shape = (1,) * rank
        return cls(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=torch.bool))

    @classmethod
    def all_of(cls, tensor: Tensor) -> Known:
        """A tensor that is known."""
        return cls(tensor, torch.ones((1,) * tensor.ndim, dtype=torch.bool).expand(tensor.shape))

    @property
    def any(self) -> bool:
        """Whether anything is known."""
        return bool(self.mask.any())

    def where(self, mask: Tensor) -> Known:
        """What is known of it and lies in another mask."""
        mask = (self.mask & mask).broadcast_to(self.value.shape)
        return Known(self.value.masked_fill(~mask, 0), mask)

    def collapsed(self, axes: Sequence[int]) -> Known:
        """The same along some dimensions: known where it does not change along them."""
        value, mask = self.value, self.mask
        for axis in axes:
            if value.shape[axis] > 1:
                first = value.narrow(axis, 0, 1)
                same = mask.all(axis, keepdim=True) & (value == first).all(axis, keepdim=True)
                value, mask = first.masked_fill(~same, 0), same
        return Known(value, mask)

    def compact(self, always: Sequence[int]) -> Known:
        """Without memory for dimensions along which nothing changes, and along those that must not change."""
        known = self.collapsed(always)
        value, mask = known.value, known.mask
        for axis in range(value.ndim):
            if value.shape[axis] > 1:
                first, held = value.narrow(axis, 0, 1), mask.narrow(axis, 0, 1)
                if bool((value == first).all()) and bool((mask == held).all()):
                    value, mask = first, held
        return Known(value, mask)

    def vector(self, axis: int) -> Known:
        """One entry for each place along a dimension: known where nothing else matters."""
        known = self.collapsed([other for other in range(self.value.ndim) if other != axis])
        return Known(known.value.flatten(), known.mask.flatten())


class Constants:
    """Known values of all nodes visited so far.

    Attributes:
        module: The canonical graph module, as it computes in evaluation mode.
        extents: Sizes on the example.
    """

    def __init__(self, module: GraphModule, extents: Extents) -> None:
        self.module, self.extents = module, extents
        self.row_sums_one: set[Node] = set()
        self._values: dict[Node, list[Known]] = {}

    def of(self, node: Any, item: int = 0) -> Known:
        """What is known of a visited node's result."""
        return self._values[node][item]

    def channel(self, node: Any, axis: int) -> Known:
        """What is known of each place along a dimension of a node's result, at its full size."""
        known = self.of(node).vector(axis)
        size = self.extents.shape(node)[axis]
        return Known(known.value.expand(size), known.mask.expand(size))

    def store(self, node: Node, values: Sequence[Known]) -> None:
        """Notes what is known of a node's results; what changes with a run-time size is not."""
        shapes, open_axes = self.extents.shapes(node), self.extents.open(node)
        self._values[node] = [
            values[item].compact(axes)
            if item < len(values) and values[item].any
            else Known.nothing(len(shape))
            for item, (shape, axes) in enumerate(zip(shapes, open_axes, strict=True))
        ]

    def moved(self, node: Node) -> list[Known]:
        """What is known of the results of an operator that only moves elements."""
        sources = tensor_inputs(node, self.extents)
        if not any(self.of(source).any for source in sources) and not pads_a_number(node):
            return []
        extents = self.extents
        values = apply(node, lambda source: self.of(source).value.expand(extents.shape(source)), extents)
        masks = apply(
            node, lambda source: self.of(source).mask.expand(extents.shape(source)), extents, padding=True
        )
        return [Known(value, mask) for value, mask in zip(values, masks, strict=True)]

    def computed(self, node: Node) -> list[Known]:
        """What is known of an operator that computes each element from the elements in its place."""
        sources = tensor_inputs(node, self.extents)
        known = [self.of(source) for source in sources]
        product = operator_name(node) in ("mul", "multiply") and len(known) == 2
        if not (all(one.any for one in known) or (product and any(one.any for one in known))):
            return []
        value = self._evaluate(node, dict(zip(sources, known, strict=True)))
        mask = torch.ones((), dtype=torch.bool)
        for one in known:
            mask = mask & one.mask
        if product:
            for one in known:
                mask = mask | (one.mask & (one.value == 0))
        mask = mask.broadcast_to(value.shape)
        return [Known(value.masked_fill(~mask, 0), mask)]

    def _evaluate(self, node: Node, known: dict[Node, Known]) -> Tensor:
        args, kwargs = map_arg(
            (node.args, dict(node.kwargs)),
            lambda source: known[source].value if source in known else self.extents.value(source),
        )
        target: Any = node.target
        with torch.no_grad():
            found: Tensor = target(*args, **kwargs)
        return found
