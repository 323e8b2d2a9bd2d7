"""What else reads the parameters of a layer, or goes through the normalisation behind it.

A layer can be replaced by several only where its weight and bias are its own, and what follows it can move
with it only where it serves nothing else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from sparsify.graph.dimensions import operator_name
from sparsify.graph.facts import LayerFacts


@dataclass(frozen=True)
class OtherReaders:
    """Who else has a claim, in words, by the path of the layer; what is the layer's own is not listed.

    Attributes:
        of_parameters: On its weight or bias.
        of_norm: On the normalisation that follows it.
    """

    of_parameters: Mapping[str, str] = field(default_factory=dict)
    of_norm: Mapping[str, str] = field(default_factory=dict)


def other_readers(
    module: GraphModule, layers: Iterable[LayerFacts], ties: Iterable[Sequence[str]] = ()
) -> OtherReaders:
    """Finds who else reads what belongs to each layer.

    Args:
        module: Canonical graph module.
        layers: Its layers.
        ties: Names of one parameter each.
    """
    return _Graph(module, ties).readers(layers)


class _Graph:
    """A graph by what its nodes refer to."""

    def __init__(self, module: GraphModule, ties: Iterable[Sequence[str]]) -> None:
        self._tied = {name: tuple(names) for names in ties for name in names}
        self._calls: dict[str, list[Node]] = defaultdict(list)
        self._reads: dict[str, list[Node]] = defaultdict(list)
        for node in module.graph.nodes:
            if node.op == "call_module":
                self._calls[str(node.target)].append(node)
            elif node.op == "get_attr":
                self._reads[str(node.target)].append(node)

    def readers(self, layers: Iterable[LayerFacts]) -> OtherReaders:
        parameters, norms = {}, {}
        for layer in layers:
            own = self._own(layer)
            claim = self._claim(self._parameters(layer, own), own)
            if claim is not None:
                parameters[layer.fqn] = claim
            if layer.follows.norm is not None and (claim := self._norm(layer.follows.norm, own)) is not None:
                norms[layer.fqn] = claim
        return OtherReaders(parameters, norms)

    def _own(self, layer: LayerFacts) -> frozenset[Node]:
        """The layer's calls."""
        if not layer.functional:
            return frozenset(self._calls[layer.fqn])
        sources = self._reads[layer.weight]
        users = (user for source in sources for user in source.users)
        return frozenset(user for user in users if len(user.args) > 1 and user.args[1] in sources)

    def _parameters(self, layer: LayerFacts, own: frozenset[Node]) -> list[str | Node]:
        """Paths of weight and bias; the node of a bias that is computed."""
        if not layer.functional:
            return [layer.weight, f"{layer.fqn}.bias"]
        found: list[str | Node] = [layer.weight]
        for node in own:
            bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
            if isinstance(bias, Node):
                found.append(str(bias.target) if bias.op == "get_attr" else bias)
        return found

    def _claim(self, names: Iterable[str | Node], own: frozenset[Node]) -> str | None:
        """The first other reader of some parameters."""
        for name in names:
            if isinstance(name, Node):
                return f"its bias is computed in the graph ({operator_name(name)})"
            if name in self._tied:
                return f"{name} is tied to {', '.join(one for one in self._tied[name] if one != name)}"
            readers = (user for source in self._reads.get(name, ()) for user in source.users)
            other = next((user for user in readers if user not in own), None)
            if other is not None:
                return f"{name} is also read by {operator_name(other)} (node {other.name})"
        return None

    def _norm(self, path: str, own: frozenset[Node]) -> str | None:
        for node in self._calls[path]:
            if node.args[0] not in own:
                return f"{path} is also called on what {node.args[0]} computes"
        return self._claim((f"{path}.weight", f"{path}.bias"), frozenset())
