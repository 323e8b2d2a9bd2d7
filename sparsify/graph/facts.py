"""What a traced model's dimensions are: width groups, layers with roles and FLOPs, and baked-in literals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import gcd
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from sparsify.errors import Refusal
from sparsify.graph.couplings import couple, settle
from sparsify.graph.dimensions import Dimensions, Dims, flat_sizes, operator_name
from sparsify.graph.flops import node_flops
from sparsify.graph.following import NOTHING, Following, common, following
from sparsify.graph.layout import Layout
from sparsify.graph.poly import Poly
from sparsify.graph.roles import batch_norm_follows, residual_additions, roles
from sparsify.graph.traced import Traced
from sparsify.graph.two_widths import check_two_widths, example_inputs


@dataclass(frozen=True)
class WidthGroup:
    """All tensor dimensions that follow one width symbol.

    Attributes:
        id: Name of the symbol in every ``Poly`` of the facts (its first member, made unique).
        size: Present value of the symbol. Channels, or heads where the head size is fixed.
        granularity: Channels that one unit of the symbol stands for: the greatest common divisor of the
            coefficients with which it enters what layers read and compute (the head size, for heads).
        members: Parameter dimensions that hold the symbol, as ``"encoder.0.fc1.weight[0]"``.
        residual: Whether an addition of two activations carries it.
        pinned: Why it must keep its size, or None where it may grow.
    """

    id: str
    size: int
    granularity: int
    members: tuple[str, ...]
    residual: bool
    pinned: str | None


@dataclass(frozen=True)
class LayerFacts:
    """A layer whose weight could be masked.

    Attributes:
        fqn: Path of the module.
        kind: ``linear``, ``conv1d``, ``conv2d``, ``conv3d`` or ``embedding``.
        role: ``input``, ``hidden``, ``readout``, ``depthwise``, ``grouped`` or ``embedding``.
        weight: Path of the weight parameter.
        dims: Shape of the weight over width symbols.
        flops: FLOPs at density 1 and the example's shapes, over width symbols.
        batchnorm_follows: Whether a batch normalization reads the output.
        groups: Convolution groups over width symbols (a depthwise layer's follow its channels); 1 otherwise.
        node: Name of the first graph node that calls it.
        follows: What reads the output, alone, up to the first nonlinearity; nothing where calls differ.
        functional: Whether the weight is read by an operator of the graph, not by a module of its own.
    """

    fqn: str
    kind: str
    role: str
    weight: str
    dims: tuple[Poly, ...]
    flops: Poly
    batchnorm_follows: bool
    groups: Poly
    node: str
    follows: Following = NOTHING
    functional: bool = False


@dataclass(frozen=True)
class Literal:
    """An int in ``node.args`` (the path starts with an index) or ``node.kwargs`` (a name), and its size."""

    node: str
    path: tuple[int | str, ...]
    value: Poly


@dataclass(frozen=True)
class Facts:
    """Everything that planning and rewriting know about a model.

    Attributes:
        groups: Width groups, pinned ones included.
        layers: Layers in execution order.
        parameters: Shape of every parameter and buffer over width symbols; pinned widths are numbers.
        literals: Sizes baked into the graph that must follow the widths.
        other_flops: FLOPs outside of ``layers``: attention products and other matrix products.
        refusals: Operators that no rule knows, and what they pin.
        layouts: In which order the dimensions of every parameter and buffer are made of widths.
    """

    groups: tuple[WidthGroup, ...]
    layers: tuple[LayerFacts, ...]
    parameters: Mapping[str, tuple[Poly, ...]]
    literals: tuple[Literal, ...]
    other_flops: Poly
    refusals: tuple[Refusal, ...]
    layouts: Mapping[str, tuple[Layout, ...]] = field(default_factory=dict)


_KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.Embedding: "embedding",
}
_FUNCTION_KINDS = {"linear": "linear", "conv1d": "conv1d", "conv2d": "conv2d", "conv3d": "conv3d"}
_SPACE = "extent in space, not a width"


def facts(traced: Traced) -> Facts:
    """Finds out how a traced model's dimensions depend on each other, and what each layer is and costs.

    Linear in the number of nodes; nothing is computed and no weight is read.

    Args:
        traced: What `trace` returned.
    """
    module = traced.module
    dimensions = couple(module)
    shapes = _shapes(module, dimensions)
    inputs = example_inputs(traced)
    runtime = dimensions.runtime_sizes(inputs)
    settle(dimensions, shapes.values())
    check_two_widths(dimensions, shapes, inputs, runtime)
    return _Assembly(dimensions, shapes, runtime).facts()


def describe(facts: Facts) -> list[dict[str, Any]]:
    """Width groups as plain data, for a person or JSON: growing ones first, then pinned ones and why."""
    ordered = sorted(facts.groups, key=lambda group: group.pinned is not None)
    return [
        {
            "id": group.id,
            "width": group.size * group.granularity,
            "size": group.size,
            "granularity": group.granularity,
            "residual": group.residual,
            "pinned": group.pinned,
            "members": list(group.members),
        }
        for group in ordered
    ]


def _shapes(module: GraphModule, dimensions: Dimensions) -> dict[str, Dims]:
    """Dimensions of every parameter and buffer; a buffer that no parameter's width reached is a constant."""
    parameters = module.named_parameters(remove_duplicate=False)
    shapes = {name: dimensions.parameter(parameter) for name, parameter in parameters}
    for name, buffer in module.named_buffers(remove_duplicate=False):
        known = dimensions.tensors.get(id(buffer))
        shapes[name] = tuple(Poly(int(size)) for size in buffer.shape) if known is None else known
    return shapes


class _Assembly:
    """Facts from solved equations."""

    def __init__(
        self, dimensions: Dimensions, shapes: Mapping[str, Dims], runtime: Mapping[str, int]
    ) -> None:
        self._dimensions, self._shapes = dimensions, shapes
        self._module, self._widths = dimensions.module, dimensions.widths
        self._runtime = {name: Poly(value) for name, value in runtime.items()}
        parameters = dict(self._module.named_parameters(remove_duplicate=False))
        self._paths: dict[int, str] = {}
        for name, tensor in parameters.items():
            self._paths.setdefault(id(tensor), name)
        self._parameters = [name for name in shapes if name in parameters]
        self._ids: dict[str, Poly] = {}
        self._layers = self._layer_nodes()
        self._whole = {
            f"{self._weight(nodes[0])}[{axis}]"
            for nodes in self._layers.values()
            for axis in ((0, 1) if self._sort(nodes[0]) == "dense" else (0,))
            if self._sort(nodes[0]) != "embedding"
        }

    def facts(self) -> Facts:
        """All of it."""
        groups, layers = self._groups(), self._layers
        layer_nodes = {node for nodes in layers.values() for node in nodes}
        additions = residual_additions(self._module.graph, self._dimensions.data, frozenset(layer_nodes))
        residual = self._residual_symbols(additions)
        others = (node for node in self._module.graph.nodes if node not in layer_nodes)
        return Facts(
            groups=tuple(self._group(group, members, residual) for group, members in groups.items()),
            layers=tuple(self._layer_facts(layers, additions)),
            parameters={name: self._named(shape) for name, shape in self._shapes.items()},
            literals=tuple(self._literals()),
            other_flops=self._flops(others),
            refusals=tuple(self._dimensions.refusals),
            layouts={name: self._layout(shape) for name, shape in self._shapes.items()},
        )

    def _groups(self) -> dict[str, list[tuple[str, int]]]:
        """Members of each group with their coefficients, by free symbol or the symbol that was pinned."""
        groups: dict[str, list[tuple[str, int]]] = {}
        for name in self._parameters:
            for axis, size in enumerate(self._shapes[name]):
                resolved = self._widths.resolve(size)
                member = f"{name}[{axis}]"
                for symbol in self._widths.free(resolved):
                    factor = reduce(gcd, (c for m, c in resolved.terms.items() if symbol in m), 0)
                    groups.setdefault(symbol, []).append((member, factor))
                pin = self._widths.pin_of(size)
                if resolved.constant is not None and pin is not None and pin.reason != _SPACE:
                    groups.setdefault(pin.root, []).append((member, 1))
        taken: Counter[str] = Counter()
        for symbol, members in groups.items():
            first = members[0][0]
            taken[first] += 1
            self._ids[symbol] = Poly.symbol(first if taken[first] == 1 else f"{first}#{taken[first]}")
        return groups

    def _group(self, symbol: str, members: list[tuple[str, int]], residual: frozenset[str]) -> WidthGroup:
        pin = self._widths.pins.get(symbol)
        size = self._widths.values[symbol]
        if pin is not None:
            name, _, axis = members[0][0].rpartition("[")
            size = self._widths.value(self._widths.resolve(self._shapes[name][int(axis[:-1])]))
        return WidthGroup(
            id=str(self._ids[symbol]),
            size=size,
            granularity=self._granularity(members),
            members=tuple(member for member, _ in members),
            residual=symbol in residual,
            pinned=None if pin is None else pin.reason,
        )

    def _granularity(self, members: list[tuple[str, int]]) -> int:
        """Over what layers read and compute, where the width is in any.

        A table of one number a head, or the channels of one group, do not count.
        """
        whole = [factor for member, factor in members if member in self._whole]
        return reduce(gcd, whole or [factor for _, factor in members])

    def _residual_symbols(self, additions: Iterable[Node]) -> frozenset[str]:
        found = set()
        for node in additions:
            for size in flat_sizes(self._dimensions.values[node]):
                pin = self._widths.pin_of(size)
                found |= {*self._widths.free(size), *([pin.root] if pin is not None else ())}
        return frozenset(found)

    def _layer_nodes(self) -> dict[str, list[Node]]:
        """Nodes that use each layer's weight, by the weight's path."""
        layers: dict[str, list[Node]] = {}
        for node in self._module.graph.nodes:
            weight = self._weight(node)
            if weight is not None:
                owner = str(node.target) if node.op == "call_module" else ""
                layers.setdefault(f"{owner}:{weight}", []).append(node)
        return layers

    def _weight(self, node: Node) -> str | None:
        if node.op == "call_module":
            module = self._module.get_submodule(str(node.target))
            return f"{node.target}.weight" if type(module) in _KINDS else None
        if node.op == "call_function" and operator_name(node) in _FUNCTION_KINDS and len(node.args) > 1:
            source = node.args[1]
            if isinstance(source, Node) and source.op == "get_attr":
                return str(source.target) if str(source.target) in self._parameters else None
        return None

    def _layer_facts(
        self, layers: Mapping[str, list[Node]], additions: frozenset[Node]
    ) -> Iterable[LayerFacts]:
        sorts = {node: self._sort(node) for nodes in layers.values() for node in nodes}
        assigned = roles(self._module.graph, sorts, additions)
        for nodes in layers.values():
            node = nodes[0]
            weight = str(self._weight(node))
            module = self._module.get_submodule(str(node.target)) if node.op == "call_module" else None
            held = {assigned[one] for one in nodes}
            yield LayerFacts(
                fqn=str(node.target) if module is not None else weight.rpartition(".")[0],
                kind=_KINDS[type(module)] if module is not None else _FUNCTION_KINDS[operator_name(node)],
                role=assigned[node] if len(held) == 1 else "hidden",
                weight=weight,
                dims=self._named(self._shapes[weight]),
                flops=self._flops(nodes),
                batchnorm_follows=all(batch_norm_follows(self._module, one) for one in nodes),
                groups=self._name(self._convolution_groups(node)),
                node=node.name,
                follows=common([following(self._module, one) for one in nodes]),
                functional=module is None,
            )

    def _convolution_groups(self, node: Node) -> Poly:
        """Groups of a convolution; of a depthwise one, its input channels."""
        module = self._module.get_submodule(str(node.target)) if node.op == "call_module" else None
        groups = getattr(module, "groups", 1) if module is not None else self._function_groups(node)
        weight = self._shapes[str(self._weight(node))]
        if groups != 1 and weight[1].constant == 1:
            source = self._dimensions.tensor(node.args[0])
            return source[len(source) - len(weight) + 1]
        return Poly(groups)

    def _function_groups(self, node: Node) -> int:
        if operator_name(node) == "linear":
            return 1
        groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        return groups if isinstance(groups, int) else 1

    def _sort(self, node: Node) -> str:
        if operator_name(node) == "Embedding":
            return "embedding"
        if self._convolution_groups(node) == 1:
            return "dense"
        return "depthwise" if self._shapes[str(self._weight(node))][1].constant == 1 else "grouped"

    def _flops(self, nodes: Iterable[Node]) -> Poly:
        total: Counter[tuple[str, ...]] = Counter()
        for node in nodes:
            flops = self._widths.resolve(node_flops(node, self._dimensions)).substitute(self._runtime)
            for monomial, coefficient in self._name(flops).terms.items():
                total[monomial] += coefficient
        return Poly(total)

    def _literals(self) -> Iterable[Literal]:
        for node, path, size in self._dimensions.literals:
            value = self._name(size)
            if value.constant is None:
                yield Literal(node.name, path, value)

    def _layout(self, shape: Dims) -> tuple[Layout, ...]:
        found = (self._widths.layouts.of(size, self._widths.resolve) for size in shape)
        return tuple(layout.named(self._name) for layout in found)

    def _name(self, size: Poly) -> Poly:
        return self._widths.resolve(size).substitute(self._ids)

    def _named(self, shape: Dims) -> tuple[Poly, ...]:
        return tuple(self._name(size) for size in shape)
