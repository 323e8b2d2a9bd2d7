"""FLOPs as polynomials: twice the multiply-accumulates of linear layers, convolutions and matrix products.

Counted as ``torch.utils.flop_counter`` counts them; attention is its two products. All else is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Node

from sparsify.graph.dimensions import CONVOLUTIONS, RECURRENT, Call, Dimensions, Dims, operator_name
from sparsify.graph.poly import Poly, product

Rule = Callable[[Node, Dimensions], Poly]


def _shape(argument: Any, dimensions: Dimensions) -> Dims:
    value = dimensions.values.get(argument)
    return value if isinstance(value, tuple) else ()


def _weighted(node: Node, x: Dims, weight: Dims, dimensions: Dimensions, *, transposed: bool) -> Poly:
    """Every weight is used once for each output position; for each input position when transposed."""
    if len(weight) == 2:
        return product([*x[:-1], *weight]) * 2
    shape = x if transposed else _shape(node, dimensions)
    spatial = len(weight) - 2
    return product([*shape[: -spatial - 1], *shape[-spatial:], *weight]) * 2


def _module(node: Node, dimensions: Dimensions) -> Poly:
    module = dimensions.module.get_submodule(str(node.target))
    if type(module).__name__ == "ScaledDotProductAttention":
        return _attention(*(_shape(argument, dimensions) for argument in node.args[:3]))
    if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
        weight = dimensions.parameter(module.weight)
        transposed = bool(getattr(module, "transposed", False))
        return _weighted(node, _shape(node.args[0], dimensions), weight, dimensions, transposed=transposed)
    return Poly(0)


def _functional(node: Node, dimensions: Dimensions) -> Poly:
    call = Call.of(node)
    x, weight = _shape(call["input"], dimensions), _shape(call["weight"], dimensions)
    transposed = bool(call.get("transposed")) or "transpose" in operator_name(node)
    return _weighted(node, x, weight, dimensions, transposed=transposed)


def _matmul(node: Node, dimensions: Dimensions) -> Poly:
    left, right = node.args[-2:] if operator_name(node) in {"addmm", "baddbmm", "addbmm"} else node.args[:2]
    a, b = _shape(left, dimensions), _shape(right, dimensions)
    if not (a and b):
        return Poly(0)
    if operator_name(node) == "addbmm":  # sums over the batch, which its output does not show
        return product([*a, b[-1]]) * 2
    return product([*_shape(node, dimensions), a[-1]]) * 2


def _attention(query: Dims, key: Dims, value: Dims) -> Poly:
    return product(query[:-1]) * key[-2] * (query[-1] + value[-1]) * 2


def _attention_call(node: Node, dimensions: Dimensions) -> Poly:
    call = Call.of(node)
    return _attention(*(_shape(call[name], dimensions) for name in ("query", "key", "value")))


def _einsum(node: Node, dimensions: Dimensions) -> Poly:
    """One product over all letters of two operands; no product without a letter that is summed over."""
    call = Call.of(node)
    terms, _, result = call["equation"].replace(" ", "").partition("->")
    letters = terms.split(",")
    if len(letters) != 2 or "." in terms:
        return Poly(0)
    shared = [letter for letter in letters[0] if letter in letters[1] and letter not in result]
    sizes = {
        letter: size
        for term, operand in zip(letters, call["tensors"], strict=True)
        for letter, size in zip(term, _shape(operand, dimensions), strict=True)
    }
    used = [size for letter, size in sizes.items() if letter in result or letter in shared]
    return product(used) * 2 if shared else Poly(0)


def _recurrent(node: Node, dimensions: Dimensions) -> Poly:
    """Every matrix of a recurrent layer or cell is used once for each step of each sequence."""
    lists = [argument for argument in node.args if isinstance(argument, (list, tuple))]
    weights = lists[-1] if "cell" not in operator_name(node) else [a for a in node.args[2:] if a is not None]
    shapes = [_shape(weight, dimensions) for weight in weights]
    matrices = [product(shape) for shape in shapes if len(shape) == 2]
    return product(_shape(node.args[0], dimensions)[:-1]) * sum(matrices, Poly(0)) * 2


RULES: dict[str, Rule] = {
    **dict.fromkeys(RECURRENT, _recurrent),
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner", "addmm", "baddbmm", "addbmm"), _matmul),
    **dict.fromkeys(("linear", *CONVOLUTIONS), _functional),
    "scaled_dot_product_attention": _attention_call,
    "einsum": _einsum,
}


def node_flops(node: Node, dimensions: Dimensions) -> Poly:
    """FLOPs of one node over width and run-time symbols."""
    if node.op == "call_module":
        return _module(node, dimensions)
    rule = RULES.get(operator_name(node)) if node.op == "call_function" else None
    return rule(node, dimensions) if rule is not None else Poly(0)
