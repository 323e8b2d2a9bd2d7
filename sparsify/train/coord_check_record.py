"""Reads the mean magnitude of what chosen layers put out, while a model runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from sparsify.errors import UnsupportedModelError

_HOLDER = "_coordinates"
_VIEWS = {
    torch.ops.aten.t.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.reshape.default,
}


class Coordinate(nn.Module):
    """Sums up mean |x| over the calls of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor | None = None
        self.calls = 0

    @torch.no_grad()
    def forward(self, x: Tensor) -> None:
        """Takes note of one output, of any shape."""
        mean = x.detach().abs().mean(dtype=torch.float64)
        self.total = mean if self.total is None else self.total + mean
        self.calls += 1

    def take(self) -> float:
        """Mean |x| over the calls since the last time; NaN where there were none."""
        value = float("nan") if self.total is None else float(self.total) / self.calls
        self.total, self.calls = None, 0
        return value


class Coordinates:
    """Observers at the outputs of layers.

    The graph gets one more node behind every call of a layer, so that modules and operators on bare
    parameters are read alike; what the model computes stays.

    Args:
        model: Changed in place.
        layers: Name of each layer to the path of its weight.

    Raises:
        UnsupportedModelError: No node of the graph reads a layer's weight.
    """

    def __init__(self, model: fx.GraphModule, layers: Mapping[str, str]) -> None:
        model.add_submodule(_HOLDER, nn.ModuleList())
        self._observers: dict[str, Coordinate] = {}
        for number, (name, weight) in enumerate(layers.items()):
            target = f"{_HOLDER}.{number}"
            observer = self._observers[name] = Coordinate()
            model.add_submodule(target, observer)
            nodes = _readers(model.graph, weight)
            if not nodes:
                raise UnsupportedModelError(f"'{name}': no node of the graph reads its weight '{weight}'")
            for node in nodes:
                with model.graph.inserting_after(node):
                    model.graph.call_module(target, (node,))
        model.recompile()

    def take(self) -> dict[str, float]:
        """Mean |output| of every layer since the last time."""
        return {name: observer.take() for name, observer in self._observers.items()}


def _readers(graph: fx.Graph, weight: str) -> list[fx.Node]:
    """The nodes that compute with a weight: calls of its module, or operators that take it."""
    owner = weight.rpartition(".")[0]
    found = list(graph.find_nodes(op="call_module", target=owner))
    waiting = [user for node in graph.find_nodes(op="get_attr", target=weight) for user in node.users]
    while waiting:
        node = waiting.pop()
        if node.target in _VIEWS:
            waiting.extend(node.users)
        else:
            found.append(node)
    return found
