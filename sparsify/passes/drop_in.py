"""What the drop-in families share: a layer is taken out of the graph, and others are built in its place."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from sparsify.errors import InvalidPlanError
from sparsify.graph.facts import LayerFacts
from sparsify.graph.following import NOTHING, following
from sparsify.graph.verify import propagate
from sparsify.passes.building import template_of
from sparsify.passes.contract import Pass, PassResult, mark
from sparsify.passes.parts import Inside, bias_of, container, inside
from sparsify.planning import Plan
from sparsify.planning.schema import PlanLayer


@dataclass(frozen=True)
class Call:
    """One call of a layer that is being replaced.

    Attributes:
        node: Its node.
        norm: The normalisation that follows, where the plan wants it inside.
        activation: The nodes of the activation that follows, in order, where the plan wants it inside.
    """

    node: Node
    norm: Node | None
    activation: tuple[Node, ...]

    @property
    def end(self) -> Node:
        """The last of these nodes."""
        return self.activation[-1] if self.activation else self.norm or self.node


@dataclass(frozen=True)
class Index:
    """Nodes by what they refer to.

    Attributes:
        calls: Calls of every module, by its path.
        reads: Reads of every parameter and buffer, by its path.
    """

    calls: Mapping[str, list[Node]]
    reads: Mapping[str, list[Node]]


@dataclass(frozen=True)
class Site:
    """A layer of the graph that is being replaced.

    Attributes:
        layer: Its plan.
        path: Where its container stands.
        root: The container, which takes the new modules.
        template: The layer itself: its class, geometry, bias, dtype and device.
        inside: What stands in the branches or between the factors.
        calls: Its calls.
        index: What the graph called and read when the pass began.
    """

    layer: PlanLayer
    path: str
    root: nn.Module
    template: nn.Module
    inside: Inside
    calls: tuple[Call, ...]
    index: Index


class DropIn(Pass):
    """A pass that replaces every layer of its family; counts the layers."""

    def run(self, graph: GraphModule, plan: Plan) -> PassResult:
        """Replaces one layer after the other, in place."""
        layers = [layer for layer in plan.layers if layer.family == self.name]
        if not layers:
            return PassResult(graph, 0)
        facts = {fact.weight: fact for fact in self.context.facts.layers}
        index = _index(graph)
        for layer in layers:
            self.replace(graph, self._open(graph, layer, facts[layer.weight], index))
        for node in [node for nodes in index.reads.values() for node in nodes if not node.users]:
            graph.graph.erase_node(node)
        graph.recompile()
        propagate(graph)
        return PassResult(graph, len(layers))

    @abstractmethod
    def replace(self, graph: GraphModule, site: Site) -> None:
        """Builds the modules of one layer and rewrites its calls."""

    def ensures(self, graph: GraphModule, plan: Plan) -> None:
        """Every tensor of the family's layers stands in its place, at its shape."""
        parameters = dict(graph.named_parameters())
        for layer in plan.layers:
            for tensor in layer.tensors if layer.family == self.name else ():
                found = parameters.get(tensor.fqn)
                if found is None or tuple(found.shape) != tensor.shape:
                    raise self.failed(f"{tensor.fqn} is missing, or not of shape {tensor.shape}")

    def copied(self, graph: GraphModule, call: Call, value: Node, slopes: str | None = None) -> Node:
        """Computes the activation that follows a call on another value; `value` itself where there is none.

        Args:
            graph: The graph.
            call: The call.
            value: What the activation is computed on.
            slopes: Where numbered modules stand that take the place of the activation's; None keeps these.
        """
        known = {call.norm or call.node: value}
        modules = 0
        for node in call.activation:
            made = graph.graph.node_copy(node, known.__getitem__)
            if made.op == "call_module" and slopes is not None:
                made.target, modules = f"{slopes}.{modules}", modules + 1
            mark(made, self.name, node.name)
            known[node] = made
        return known[call.end] if call.activation else value

    def refuse(self, layer: PlanLayer, why: str) -> InvalidPlanError:
        """The error of a plan that asks for what this layer cannot become."""
        return InvalidPlanError(
            f"layers ({layer.fqn}).family: it cannot become {self.name}: {why}; keep it dense, wide or masked"
        )

    def check_untied(self, layer: PlanLayer, names: Iterable[str]) -> None:
        """Raises InvalidPlanError when a parameter that is to be replaced is used under another name too."""
        tied = {name: tie for tie in self.context.traced.ties for name in tie}
        for name in names:
            if name in tied:
                raise self.refuse(layer, f"{name} is tied to {', '.join(n for n in tied[name] if n != name)}")

    def _open(self, graph: GraphModule, layer: PlanLayer, fact: LayerFacts, index: Index) -> Site:
        """Takes a layer out of the tree of modules and puts a container there."""
        bias = bias_of(graph, fact, _first(fact, index))
        own = [layer.weight, *([bias] if bias else [])]
        self.check_untied(layer, own)
        nodes = self._nodes(layer, fact, own, index)
        within = inside(layer, fact)
        calls = tuple(_call(graph, node, within) for node in nodes)
        template = template_of(graph, nodes[0], layer.kind)
        path = container(fact)
        root = nn.Module()
        root.train(template.training)
        if not fact.functional:
            _inherit(root, template, self.refuse(layer, "modules below it have names of its parts"))
        for name in own if fact.functional else ():
            owner, _, leaf = name.rpartition(".")
            del graph.get_submodule(owner)._parameters[leaf]
        parent, _, leaf = path.rpartition(".")
        graph.get_submodule(parent)._modules[leaf] = root
        return Site(layer, path, root, template, within, calls, index)

    def _nodes(self, layer: PlanLayer, fact: LayerFacts, own: list[str], index: Index) -> list[Node]:
        """Every call of a layer; its parameters must be read by these only."""
        reads = {user for name in own for node in index.reads[name] for user in node.users}
        if not fact.functional:
            if reads:
                raise self.refuse(layer, f"its parameters are also read by node {next(iter(reads)).name}")
            return index.calls[fact.fqn]
        nodes = [
            node for source in index.reads[layer.weight] for node in source.users if node.args[1] is source
        ]
        stranger = next((node for node in reads if node not in nodes), None)
        if stranger is not None or {str(node.target) for node in nodes} != {str(nodes[0].target)}:
            raise self.refuse(layer, f"its parameters are also read by node {(stranger or nodes[-1]).name}")
        return nodes


def inserted(node: Node, like: Node, by: str) -> Node:
    """Gives a new node the place in the user's model of the one that it stands for."""
    node.meta["nn_module_stack"] = like.meta.get("nn_module_stack", {})
    mark(node, by, like.name)
    return node


def _call(graph: GraphModule, node: Node, within: Inside) -> Call:
    found = following(graph, node) if within.follows else NOTHING
    norm = next(iter(node.users)) if found.norm is not None else None
    activation: list[Node] = []
    reached = norm or node
    while len(activation) < len(found.activation):
        reached = reached.next
        if reached.name == found.activation[len(activation)]:
            activation.append(reached)
    return Call(node, norm, tuple(activation))


def _first(fact: LayerFacts, index: Index) -> Node:
    """A call of a layer."""
    if not fact.functional:
        return index.calls[fact.fqn][0]
    return next(iter(index.reads[fact.weight][0].users))


def _index(graph: GraphModule) -> Index:
    calls: dict[str, list[Node]] = defaultdict(list)
    reads: dict[str, list[Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)].append(node)
        elif node.op == "get_attr":
            reads[str(node.target)].append(node)
    return Index(calls, reads)


def _inherit(root: nn.Module, template: nn.Module, clash: InvalidPlanError) -> None:
    """Keeps what else stood below a layer's path: other modules, parameters that the graph does not read."""
    if {"branches", "norms", "u", "norm", "v", "activation", "sparse"} & set(template._modules):
        raise clash
    root._modules.update(template._modules)
    kept: dict[str, Any] = {n: p for n, p in template._parameters.items() if n not in ("weight", "bias")}
    root._parameters.update(kept)
    for name, buffer in template._buffers.items():
        if name not in ("weight_mask", "bias_mask"):
            root.register_buffer(name, buffer, name not in template._non_persistent_buffers_set)
