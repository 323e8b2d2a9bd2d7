"""What a traced model's dimensions are: width groups, layers with roles and FLOPs, and baked-in literals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from math import gcd
from typing import Any

from torch.fx import GraphModule, Node

from sparsify.errors import Refusal
from sparsify.graph.baked_values import follow_baked_values
from sparsify.graph.couplings import couple, settle
from sparsify.graph.dimensions import Call, Dimensions, Dims, flat_sizes
from sparsify.graph.flops import node_flops
from sparsify.graph.following import NOTHING, Following, common, following
from sparsify.graph.layers import Layer, layers_of, products_besides
from sparsify.graph.layout import Layout
from sparsify.graph.measured import data_dependent, measure
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
        kind: ``linear``, ``conv1d``, ``conv2d``, ``conv3d``, ``conv_transpose1d``, … or ``embedding``.
        role: ``input``, ``hidden``, ``readout``, ``depthwise``, ``grouped``, ``transposed``, ``embedding``,
            or ``dtype`` where the weight is complex or integer.
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
        refusals: Operators that no rule knows, and what they pin; products with parameters that are no layer.
        layouts: In which order the dimensions of every parameter and buffer are made of widths.
    """

    groups: tuple[WidthGroup, ...]
    layers: tuple[LayerFacts, ...]
    parameters: Mapping[str, tuple[Poly, ...]]
    literals: tuple[Literal, ...]
    other_flops: Poly
    refusals: tuple[Refusal, ...]
    layouts: Mapping[str, tuple[Layout, ...]] = field(default_factory=dict)


_SPACE = "extent in space, not a width"


def facts(traced: Traced) -> Facts:
    """Finds out how a traced model's dimensions depend on each other, and what each layer is and costs.

    Linear in the number of nodes; nothing is computed and no weight is read.

    Args:
        traced: What `trace` returned.
    """
    module = traced.module
    dimensions = couple(module)
    follow_baked_values(dimensions)
    shapes = _shapes(module, dimensions)
    inputs = example_inputs(traced)
    unknown = data_dependent(module)
    if unknown:
        dimensions.measured = measure(module, unknown, [example for _, example in inputs])
    runtime = dimensions.runtime_sizes([*inputs, *dimensions.measured.items()])
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
        self._layers = layers_of(self._module)
        self._whole = {
            f"{layer.weight}[{axis}]"
            for layer in self._layers
            for axis in ((0, 1) if self._sort(layer, layer.nodes[0]) == "dense" else (0,))
            if layer.kind != "embedding"
        }

    def facts(self) -> Facts:
        """All of it."""
        groups, data = self._groups(), self._dimensions.data
        layer_nodes = {node for layer in self._layers for node in layer.nodes}
        additions = residual_additions(self._module.graph, data, frozenset(layer_nodes))
        residual = self._residual_symbols(additions)
        others = (node for node in self._module.graph.nodes if node not in layer_nodes)
        return Facts(
            groups=tuple(self._group(group, members, residual) for group, members in groups.items()),
            layers=tuple(self._layer_facts(additions)),
            parameters={name: self._named(shape) for name, shape in self._shapes.items()},
            literals=tuple(self._literals()),
            other_flops=self._flops(others),
            refusals=(*self._dimensions.refusals, *products_besides(self._module, self._layers, data)),
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

    def _layer_facts(self, additions: frozenset[Node]) -> Iterable[LayerFacts]:
        sorts = {node: self._sort(layer, node) for layer in self._layers for node in layer.nodes}
        assigned = roles(self._module.graph, sorts, additions)
        for layer in self._layers:
            held = {assigned[one] for one in layer.nodes}
            yield LayerFacts(
                fqn=layer.fqn,
                kind=layer.kind,
                role=assigned[layer.nodes[0]] if len(held) == 1 else "hidden",
                weight=layer.weight,
                dims=self._named(self._shapes[layer.weight]),
                flops=self._flops(layer.nodes),
                batchnorm_follows=all(batch_norm_follows(self._module, one) for one in layer.nodes),
                groups=self._name(self._convolution_groups(layer, layer.nodes[0])),
                node=layer.nodes[0].name,
                follows=common([following(self._module, one) for one in layer.nodes]),
                functional=layer.functional,
            )

    def _convolution_groups(self, layer: Layer, node: Node) -> Poly:
        """Groups of a convolution; of a depthwise one, its input channels."""
        groups = self._fixed_groups(layer, node)
        weight = self._shapes[layer.weight]
        channels = self._widths.value(weight[0])
        if groups != 1 and weight[1].constant == 1 and ("transpose" not in layer.kind or groups == channels):
            source = self._dimensions.tensor(node.args[0])
            return source[len(source) - len(weight) + 1]
        return Poly(groups)

    def _fixed_groups(self, layer: Layer, node: Node) -> int:
        if not layer.functional:
            return int(getattr(self._module.get_submodule(str(node.target)), "groups", 1))
        groups = Call.of(node).get("groups", 1) if layer.kind.startswith("conv") else 1
        return groups if isinstance(groups, int) else 1

    def _sort(self, layer: Layer, node: Node) -> str:
        if not self._module.get_parameter(layer.weight).is_floating_point():
            return "dtype"
        if layer.kind == "embedding":
            return "embedding"
        groups = self._convolution_groups(layer, node)
        if groups != 1 and self._shapes[layer.weight][1].constant == 1:
            return "depthwise"
        if layer.kind.startswith("conv_transpose"):
            return "transposed"
        return "dense" if groups == 1 else "grouped"

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
