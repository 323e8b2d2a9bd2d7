"""What every node's sizes are on the example, and which of its dimensions follow a width.

Two runs on fake tensors, one at the present widths and one with every free width at a size of its own: a
dimension whose size differs holds channels that may be taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Node

from sparsify.graph.canonical_clean import is_open
from sparsify.graph.facts import Facts
from sparsify.graph.traced import Traced
from sparsify.graph.two_widths import example_inputs
from sparsify.graph.verify import Fakes, device_of, run_fake


class Extents:
    """Sizes of every node's results on the example inputs.

    Args:
        traced: A traced model.
        facts: Its facts.
    """

    def __init__(self, traced: Traced, facts: Facts) -> None:
        present = {group.id: group.size for group in facts.groups}
        grown = {group.id: 2 * group.size + place for place, group in enumerate(facts.groups)}
        self._values = _run(traced, facts, present)
        others = _run(traced, facts, grown)
        self._variable = {
            node: [
                _differing(one, two) for one, two in zip(results(value), results(others[node]), strict=True)
            ]
            for node, value in self._values.items()
        }

    def value(self, node: Node) -> Any:
        """What a node computes: fake tensors with the example's sizes, or numbers."""
        return self._values[node]

    def shapes(self, node: Node) -> list[tuple[int, ...]]:
        """Shape of each tensor that a node computes; () for what is no tensor."""
        return [_shape(item) for item in results(self._values[node])]

    def shape(self, node: Node) -> tuple[int, ...]:
        """Shape of the only, or first, tensor that a node computes."""
        return self.shapes(node)[0]

    def dtype(self, node: Node) -> torch.dtype:
        """Type of the only, or first, tensor that a node computes."""
        found = results(self._values[node])[0]
        return found.dtype if isinstance(found, Tensor) else torch.float32

    def variable(self, node: Node) -> list[tuple[int, ...]]:
        """For each tensor that a node computes, its dimensions that follow a width which may change."""
        return self._variable[node]

    def open(self, node: Node) -> list[tuple[int, ...]]:
        """For each tensor that a node computes, its dimensions that are known at run time only."""
        recorded = results(node.meta.get("val"))
        return [
            tuple(axis for axis, size in enumerate(item.shape) if is_open(size))
            if isinstance(item, Tensor)
            else ()
            for item in recorded
        ]


def results(value: Any) -> Sequence[Any]:
    """What a node computes as a list: one entry, or one for each of several results."""
    return value if isinstance(value, (list, tuple)) else [value]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _differing(one: Any, two: Any) -> tuple[int, ...]:
    pairs = zip(_shape(one), _shape(two), strict=True)
    return tuple(axis for axis, (before, after) in enumerate(pairs) if before != after)


def _run(traced: Traced, facts: Facts, sizes: dict[str, int]) -> dict[Node, Any]:
    nodes = {node.name: node for node in traced.module.graph.nodes}
    shapes = {name: [dim.evaluate(sizes) for dim in dims] for name, dims in facts.parameters.items()}
    literals: dict[Node, dict[tuple[int | str, ...], int]] = {}
    for literal in facts.literals:
        literals.setdefault(nodes[literal.node], {})[literal.path] = literal.value.evaluate(sizes)
    inputs = [example for _, example in example_inputs(traced)]
    found: dict[Node, Any] = {}
    fakes = Fakes(traced.module, FakeTensorMode(), shapes, device_of(inputs))
    run_fake(fakes, inputs, literals, found.__setitem__)
    return found
