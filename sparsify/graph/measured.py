"""Sizes that depend on the values of the inputs: taken from one run of the model on the example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from sparsify.errors import UnsupportedModelError
from sparsify.graph.dimensions import module_path, operator_name

_TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


def data_dependent(module: GraphModule) -> list[Node]:
    """The first nodes of a size, or a number, that is known only once the model has run: nonzero, item, …."""
    found: list[Node] = []
    seen: set[Any] = set()
    for node in module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, (Tensor, torch.SymInt)):
            new = free_unbacked_symbols(value) - seen
            if new:
                found.append(node)
                seen |= new
    return found


def looks_at_values(node: Node) -> bool:
    """Whether an operator makes a size or a number from values, so that fake tensors cannot run it."""
    return isinstance(node.target, torch._ops.OpOverload) and bool(_TAGS & set(node.target.tags))


def measure(module: GraphModule, nodes: Sequence[Node], inputs: Sequence[Any]) -> dict[Node, Any]:
    """What some nodes compute on the example.

    Args:
        module: Canonical graph module with real weights.
        nodes: Nodes of its graph.
        inputs: One value for each placeholder.

    Raises:
        UnsupportedModelError: The weights are on the meta device, so that nothing can be run.
    """
    if any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        node = nodes[0]
        raise UnsupportedModelError(
            f"{operator_name(node)} (node {node.name}, in {module_path(node) or 'the top level'}) makes a "
            "size from values, which cannot be known on the meta device; give the model real weights"
        )
    wanted = set(nodes)
    found: dict[Node, Any] = {}

    class Watching(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in wanted:
                found[n] = value
            return value

    was = module.training
    module.eval()
    try:
        with torch.no_grad():
            Watching(module).run(*inputs, enable_io_processing=False)
    finally:
        module.train(was)
    return found
