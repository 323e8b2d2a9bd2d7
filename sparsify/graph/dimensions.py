"""What operator rules work with: the dimensions of every node's value, over width and run-time symbols."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import Parameter

from sparsify.errors import Refusal
from sparsify.graph.poly import Poly, product
from sparsify.graph.widths import RUNTIME, Widths

CONVOLUTIONS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
)
"""ATen names of convolutions called as functions."""
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
"""ATen names of recurrent layers and cells."""

Dims = tuple[Poly, ...]
#: A tensor's dimensions, an integer, one value for each output, or nothing that has a size.
Value = Dims | Poly | list[Any] | None
Path = tuple[int | str, ...]

_PROBE = 720720 * 1009


class Unsolved(Exception):  # noqa: N818 - a verdict of a rule, caught by the walk
    """A rule cannot say how the sizes of a node depend on each other."""


@dataclass(frozen=True)
class Call:
    """A node's arguments by the names of the operator's schema.

    Attributes:
        node: The node.
        values: Argument name to value, defaults filled in.
        paths: Argument name to where it stands in the node; absent for defaults.
    """

    node: Node
    values: Mapping[str, Any]
    paths: Mapping[str, Path]

    @classmethod
    def of(cls, node: Node) -> Call:
        """Binds the arguments of an ATen call."""
        values: dict[str, Any] = {}
        paths: dict[str, Path] = {}
        for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
            if index < len(node.args):
                values[argument.name], paths[argument.name] = node.args[index], (index,)
            elif argument.name in node.kwargs:
                values[argument.name], paths[argument.name] = node.kwargs[argument.name], (argument.name,)
            else:
                values[argument.name] = argument.default_value if argument.has_default_value() else None
        return cls(node, values, paths)

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument that only some overloads have."""
        return self.values.get(name, default)


def module_path(node: Node) -> str:
    """Path of the innermost user module that a node belongs to; empty for the root."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    for path, _ in reversed(list(stack.values())):
        return "" if str(path).startswith("_empty_nn_module_stack") else str(path)
    return ""


class Dimensions:
    """Dimensions of all nodes visited so far, and the equations between them.

    Attributes:
        module: The canonical graph module.
        widths: Symbols and equations.
        values: What each visited node computes.
        literals: Sizes found in arguments: node, path, value.
        tensors: Dimensions of each parameter, and of each buffer that follows one, by identity.
        data: Nodes whose values depend on the model's inputs.
        refusals: What no rule could explain.
        measured: What nodes compute on the example whose sizes depend on values.
    """

    def __init__(self, module: GraphModule, data: frozenset[Node]) -> None:
        self.module = module
        self.widths = Widths()
        self.values: dict[Node, Value] = {}
        self.literals: list[tuple[Node, Path, Poly]] = []
        self.tensors: dict[int, Dims] = {}
        self.data = data
        self.refusals: list[Refusal] = []
        self.measured: dict[Node, Any] = {}
        self._expressions: dict[Any, Poly] = {}
        self._opaque_sizes: dict[str, Any] = {}
        self._symbol_probes: dict[Any, int] = {}
        self._sections: dict[tuple[Node, int], dict[int, Poly]] = {}

    def where(self, node: Node) -> str:
        """A node in a person's words: operator and module path."""
        name = operator_name(node)
        path = module_path(node)
        return f"{name} in {path}" if path else name

    def tensor(self, argument: Any) -> Dims:
        """Dimensions of a tensor argument; () for a plain number.

        Raises:
            Unsolved: the argument is no tensor.
        """
        value = self.values.get(argument) if isinstance(argument, Node) else ()
        if not isinstance(value, tuple):
            raise Unsolved("an argument is not a tensor")
        return value

    def parameter(self, tensor: Tensor) -> Dims:
        """Dimensions of a parameter or a buffer that follows a parameter: a symbol each."""
        known = self.tensors.get(id(tensor))
        if known is None:
            known = self.tensors[id(tensor)] = tuple(self.widths.fresh(int(size)) for size in tensor.shape)
            if isinstance(tensor, Parameter) and not tensor.is_floating_point():
                self.pin(known, f"its weight has the type {str(tensor.dtype).removeprefix('torch.')}")
        return known

    def unify(self, left: Poly, right: Poly, node: Node) -> Poly:
        """States that two sizes are equal and returns it.

        Raises:
            Unsolved: they are not.
        """
        if not self.widths.unify(left, right, self.where(node)):
            raise Unsolved(f"sizes {self.widths.resolve(left)} and {self.widths.resolve(right)} differ")
        return left

    def unify_shape(self, left: Dims, right: Dims, node: Node) -> Dims:
        """States that two shapes are equal."""
        if len(left) != len(right):
            raise Unsolved("shapes have different ranks")
        return tuple(self.unify(a, b, node) for a, b in zip(left, right, strict=True))

    def part(self, size: Poly, count: int, *, inner: bool = False) -> Poly:
        """A size divided by a number that stays; each section of a joined dimension is divided.

        Args:
            size: The size.
            count: The number.
            inner: Whether entries `count` apart belong together, not runs of `size / count` of them.

        Raises:
            Unsolved: it cannot be divided in one way only.
        """
        rest = self.widths.factor(size, Poly(count))
        if rest is None:
            raise Unsolved(f"a width {self.widths.value(size)} does not divide into {count} parts in one way")
        self.widths.layouts.made(size, "product", (rest, Poly(count)) if inner else (Poly(count), rest))
        return rest

    def broadcast(self, shapes: list[Dims], node: Node) -> Dims:
        """The shape that operands broadcast to; their sizes are equal where both are not 1."""
        rank = max((len(shape) for shape in shapes), default=0)
        result = []
        for axis in range(-rank, 0):
            sizes = [shape[axis] for shape in shapes if len(shape) >= -axis and shape[axis].constant != 1]
            for other in sizes[1:]:
                self.unify(sizes[0], other, node)
            result.append(sizes[0] if sizes else Poly(1))
        return tuple(result)

    def is_fixed(self, size: Poly) -> bool:
        """Whether no width that may still grow is in a size."""
        return not self.widths.free(size)

    def size(self, argument: Any, node: Node, path: Path, *, ratio: bool = False) -> Poly:
        """An integer argument: a run-time size, or a literal, which becomes an unknown."""
        if isinstance(argument, Node):
            value = self.values.get(argument)
            if not isinstance(value, Poly):
                raise Unsolved("a size is computed from values")
            return value
        literal = self.widths.fresh(int(argument), ratio=ratio)
        if literal.constant is None:
            self.literals.append((node, path, literal))
        return literal

    def sizes(self, call: Call, name: str, *, ratio: bool = False) -> list[Poly | None]:
        """A list of sizes; None where it says -1."""
        return [
            None
            if isinstance(item, int) and item < 0
            else self.size(item, call.node, (*call.paths[name], index), ratio=ratio)
            for index, item in enumerate(call[name])
        ]

    def meta(self, value: Any) -> Value:
        """Sizes as the trace recorded them: widths are numbers."""
        if isinstance(value, Tensor):
            return tuple(self.expression(size) for size in value.shape)
        if isinstance(value, (list, tuple)):
            return [self.meta(item) for item in value]
        if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            return self.expression(value)
        return None

    def present(self, node: Node) -> Dims:
        """Shape of a node's tensor as the trace recorded it."""
        value = self.meta(node.meta.get("val"))
        if not isinstance(value, tuple):
            raise Unsolved("the result is not a tensor")
        return value

    def expression(self, size: Any) -> Poly:
        """A recorded size over run-time symbols."""
        if not isinstance(size, torch.SymInt):
            return Poly(int(size))
        return self._polynomial(size.node.expr)

    def _polynomial(self, expression: Any) -> Poly:
        known = self._expressions.get(expression)
        if known is None:
            if expression.is_Integer:
                known = Poly(int(expression))
            elif expression.is_Add:
                known = sum((self._polynomial(part) for part in expression.args), Poly(0))
            elif expression.is_Mul and not any(p.is_Rational and not p.is_Integer for p in expression.args):
                known = product(self._polynomial(part) for part in expression.args)
            elif expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
                known = product([self._polynomial(expression.base)] * int(expression.exp))
            else:
                known = self._opaque(expression)
            self._expressions[expression] = known
        return known

    def _opaque(self, expression: Any) -> Poly:
        name = f"{RUNTIME}{expression}"
        self._opaque_sizes[name] = expression
        probes = {symbol: self._probe(symbol) for symbol in expression.free_symbols}
        self.widths.values[name] = int(expression.xreplace(probes))
        return Poly.symbol(name)

    def _probe(self, symbol: Any) -> Any:
        """A large value that many numbers divide, different for every symbol."""
        if symbol not in self._symbol_probes:
            self._symbol_probes[symbol] = _PROBE * sympy.prime(200 + len(self._symbol_probes))
        return sympy.Integer(self._symbol_probes[symbol])

    def runtime_sizes(self, inputs: Iterable[tuple[Node, Any]]) -> dict[str, int]:
        """Values of run-time symbols.

        Args:
            inputs: Placeholders with the example that each gets.
        """
        known: dict[Any, Any] = {}
        for node, example in inputs:
            recorded = node.meta.get("val")
            pairs = zip(recorded.shape, example.shape, strict=True) if isinstance(recorded, Tensor) else ()
            for size, given in [*pairs, (recorded, example)]:
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                    known[size.node.expr] = sympy.Integer(int(given))
        evaluated = {name: expression.xreplace(known) for name, expression in self._opaque_sizes.items()}
        return {name: int(value) for name, value in evaluated.items() if value.is_Integer}

    def pin(self, value: Value, reason: str) -> None:
        """Fixes every width in a value."""
        for size in flat_sizes(value):
            self.widths.pin(size, reason)

    def pin_axis(self, shape: Dims, axis: int, reason: str) -> None:
        """Fixes the widths in one dimension."""
        self.widths.pin(shape[axis], reason)

    def sections(self, source: Node, axis: int, size: Poly, cuts: list[int]) -> dict[int, Poly]:
        """Cuts a dimension of a node into sections.

        Args:
            source: The node.
            axis: The dimension, not negative.
            size: Its size.
            cuts: Every place where any reader cuts it, with 0 and the present size, in ascending order.

        Returns:
            For each cut its position over width symbols.
        """
        key = (source, axis)
        if key not in self._sections:
            parts = [self.widths.fresh(end - start) for start, end in pairwise(cuts)]
            self.widths.layouts.made(size, "sum", parts)
            self.unify(size, sum(parts, Poly(0)), source)
            position, positions = Poly(0), {0: Poly(0)}
            for cut, part in zip(cuts[1:], parts, strict=True):
                position = position + part
                positions[cut] = position
            self._sections[key] = positions
        return self._sections[key]


def operator_name(node: Node) -> str:
    """The name by which rules know an operator: ``add`` for ``aten.add_.Tensor``, the class for modules."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        return type(owner.get_submodule(str(node.target))).__name__ if owner is not None else str(node.target)
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__name__", str(node.target))
    space, _, name = schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if space in {"aten", "prims"} else f"{space}::{name}"


def flat_sizes(value: Value) -> Iterator[Poly]:
    """Every size in a value."""
    if isinstance(value, Poly):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flat_sizes(item)


def tensor_arguments(node: Node, dimensions: Dimensions) -> list[Dims]:
    """Shapes of all tensors among a node's arguments, in order."""
    values = [dimensions.values.get(source) for source in node.all_input_nodes]
    return [value for value in values if isinstance(value, tuple)]


def axis_of(axis: Any, rank: int) -> int:
    """A dimension counted from the front."""
    return operator.index(axis) % max(rank, 1)
