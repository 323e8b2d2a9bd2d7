"""Widths that stand in a graph as values: sums over a width that are divided by its size.

``x.sum(-1) / 768`` is a mean spelled out. The number is no size that an operator takes, so no shape shows
that it belongs to a width. An integer that divides such a sum follows the width; another form of it (1/768,
√768) fixes the width.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isclose, sqrt

import torch
from torch.fx import Node

from sparsify.graph.dimensions import Call, Dimensions, Dims, axis_of, operator_name
from sparsify.graph.poly import Poly

_SUMS = frozenset({"sum", "norm", "linalg_vector_norm", "logsumexp", "nansum"})
_CARRIES = frozenset({"unsqueeze", "squeeze", "expand", "reshape", "view", "expand_as", "to", "_to_copy"})
_SCALES = frozenset({"mul", "div", "true_divide", "multiply", "divide"})


def follow_baked_values(dimensions: Dimensions) -> None:
    """Makes integers that divide sums over a width follow it, and fixes widths whose number is hidden deeper.

    Args:
        dimensions: Equations after the walk; literals and pins are added.
    """
    summed: dict[Node, tuple[Poly, ...]] = {}
    for node in dimensions.module.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = operator_name(node)
        if name in _SUMS:
            summed[node] = tuple(_reduced(node, dimensions))
        elif name in _CARRIES or torch.Tag.pointwise in node.target.tags:
            spans = tuple(dict.fromkeys(s for source in node.all_input_nodes for s in summed.get(source, ())))
            if spans and name in _SCALES:
                _scale(node, spans, dimensions)
            summed[node] = spans


def _reduced(node: Node, dimensions: Dimensions) -> Iterable[Poly]:
    shape = dimensions.values.get(node.all_input_nodes[0])
    given = Call.of(node).get("dim")
    if not isinstance(shape, tuple):
        return
    dims: Dims = shape
    axes = range(len(dims)) if given is None else given if isinstance(given, (list, tuple)) else [given]
    for axis in axes:
        size = dims[axis_of(axis, len(dims))]
        if not dimensions.is_fixed(size):
            yield size


def _scale(node: Node, spans: Iterable[Poly], dimensions: Dimensions) -> None:
    """Compares the numbers of a product or quotient with the widths that its operand was summed over."""
    for index, number in enumerate(node.args):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        for size in spans:
            width = dimensions.widths.value(size)
            if isinstance(number, int) and number == width:
                dimensions.literals.append((node, (index,), size))
            elif any(isclose(number, form, rel_tol=1e-6) for form in _forms(width)):
                reason = (
                    f"{dimensions.where(node)} scales a sum over it by {number:g}, which belongs to its size"
                )
                dimensions.widths.pin(size, reason)


def _forms(width: int) -> tuple[float, ...]:
    return (width, 1 / width, sqrt(width), 1 / sqrt(width), width - 1, 1 / (width - 1))
