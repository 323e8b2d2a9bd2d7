"""Rules of size arithmetic and of operators that make tensors from sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from sparsify.graph.dimensions import Call, Dimensions, Unsolved, Value, axis_of
from sparsify.graph.poly import Poly
from sparsify.graph.rules_elementwise import Rule

FunctionRule = Callable[[Node, Dimensions], Value]


def sym_size(call: Call, dimensions: Dimensions) -> Value:
    """A dimension, as it will be."""
    shape = dimensions.tensor(call["self"])
    return shape[axis_of(call["dim"], len(shape))]


def sym_numel(call: Call, dimensions: Dimensions) -> Value:
    """The number of entries, as it will be."""
    return dimensions.widths.flattened(dimensions.tensor(call["self"]))


def filled(call: Call, dimensions: Dimensions) -> Value:
    """A tensor of stated sizes."""
    return tuple(size if size is not None else Poly(0) for size in dimensions.sizes(call, "size"))


def recorded(call: Call, dimensions: Dimensions) -> Value:
    """A tensor whose values depend on its sizes, so that literals in them stay."""
    for argument in call.node.all_input_nodes:
        dimensions.pin(dimensions.values.get(argument), f"{dimensions.where(call.node)} makes values from it")
    return dimensions.meta(call.node.meta.get("val"))


def _operands(node: Node, dimensions: Dimensions, *, literals: bool) -> list[Poly]:
    """Integer operands; a literal factor may stand for a width."""
    operands = []
    for index, argument in enumerate(node.args):
        if isinstance(argument, Node) or (literals and isinstance(argument, int)):
            operands.append(dimensions.size(argument, node, (index,)))
        elif isinstance(argument, int):
            operands.append(Poly(argument))
        else:
            raise Unsolved("arithmetic on something that is no size")
    return operands


def multiply(node: Node, dimensions: Dimensions) -> Value:
    """A product of sizes."""
    a, b = _operands(node, dimensions, literals=True)
    return a * b


def add(node: Node, dimensions: Dimensions) -> Value:
    """A sum of sizes; a literal in it stays."""
    a, b = _operands(node, dimensions, literals=False)
    return a + b


def subtract(node: Node, dimensions: Dimensions) -> Value:
    """A difference of sizes; a literal in it stays."""
    a, b = _operands(node, dimensions, literals=False)
    return a - b


def floor_divide(node: Node, dimensions: Dimensions) -> Value:
    """An exact quotient of sizes, or one of run-time sizes as the trace recorded it."""
    a, b = _operands(node, dimensions, literals=False)
    if dimensions.is_fixed(a) and dimensions.is_fixed(b):
        return dimensions.meta(node.meta.get("val"))
    if isinstance(node.args[1], int):
        b = dimensions.size(node.args[1], node, (1,))
    if dimensions.widths.value(a) % dimensions.widths.value(b) == 0:
        rest = dimensions.widths.factor(a, b)
        if rest is not None:
            return rest
    raise Unsolved("a width is divided with a remainder, or in a way that is not unique")


def number(node: Node, dimensions: Dimensions) -> Value:
    """Other arithmetic: nothing that a width may go through."""
    for argument in node.all_input_nodes:
        dimensions.pin(dimensions.values.get(argument), f"{dimensions.where(node)} computes with it")
    return dimensions.meta(node.meta.get("val"))


def getitem(node: Node, dimensions: Dimensions) -> Value:
    """One of several results."""
    source, place = node.args
    value: Any = dimensions.values.get(source)  # type: ignore[arg-type]
    if not isinstance(value, list) or not isinstance(place, int):
        raise Unsolved("an item of something that is no list of results")
    return value[place]  # type: ignore[no-any-return]


FUNCTION_RULES: dict[Any, FunctionRule] = {
    operator.getitem: getitem,
    operator.mul: multiply,
    operator.add: add,
    operator.sub: subtract,
    operator.floordiv: floor_divide,
    torch.sym_int: number,
    **dict.fromkeys(
        (
            operator.truediv,
            operator.mod,
            operator.pow,
            operator.neg,
            operator.eq,
            operator.ne,
            operator.lt,
            operator.le,
            operator.gt,
            operator.ge,
            operator.and_,
            operator.or_,
            math.ceil,
            math.floor,
            math.trunc,
            round,
            torch.sym_float,
            torch.sym_max,
            torch.sym_min,
            torch.sym_not,
            torch.sym_ite,
            torch.sym_sum,
        ),
        number,
    ),
}

RULES: dict[str, Rule] = {
    "sym_size": sym_size,
    "sym_numel": sym_numel,
    **dict.fromkeys(
        ("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty"),
        filled,
    ),
    **dict.fromkeys(
        (
            "arange",
            "linspace",
            "eye",
            "scalar_tensor",
            "tril_indices",
            "triu_indices",
            "item",
            "_local_scalar_dense",
            "sym_constrain_range",
            "sym_constrain_range_for_size",
            "randint",
            "randperm",
            "hann_window",
        ),
        recorded,
    ),
}
