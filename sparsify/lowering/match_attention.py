"""Finds scaled dot-product attention as exporters spell it, by its structure.

    y = merge(guard(softmax(scale q kᵀ + mask)) v),  q, k, v = split(projections)

split is Reshape to [batch, length, heads, size] and Transpose; merge is its inverse. The scale may be a
factor of q, k, the product, or several; kᵀ is one Transpose, two, or the way through three dimensions that
PyTorch's exporter takes. The guard replaces NaN by 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from sparsify.lowering.attention_masks import HIDDEN, hides_later, hides_nothing, spread, visible_by
from sparsify.lowering.attention_shapes import number, reshaped, shape_of, sizes_in
from sparsify.lowering.graph import STANDARD, Dim, Graph, Refused, Shape, attribute

_PER_HEAD = [0, 2, 1, 3]
_SOFTMAX_LAST = 13  # opset from which Softmax's axis is the last one when not given


@dataclass(frozen=True)
class Attention:
    """One attention that an operator can compute.

    Attributes:
        node: Name of its Softmax.
        place: Index of the last node that it stands for.
        output: Name of its result, [batch, queries, heads · size].
        q: Name of the queries, [batch, queries, heads · size].
        k: Name of the keys, [batch, keys, heads · size].
        v: Name of the values, [batch, keys, heads · value size].
        bias: Name of what is added to the scores, or None.
        heads: Their number.
        scale: Factor of the products of queries and keys.
        causal: Query i sees the keys up to i.
        nan_guard: Probabilities that are NaN count as 0.
    """

    node: str
    place: int
    output: str
    q: str
    k: str
    v: str
    bias: str | None
    heads: int
    scale: float
    causal: bool
    nan_guard: bool


@dataclass(frozen=True)
class Unmatched:
    """An attention that stays as it is.

    Attributes:
        node: Name of its Softmax.
        reason: Why, in a sentence.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class _Heads:
    """A projection seen as [batch, heads, length, size]."""

    value: str
    shape: Shape  # [batch, length, heads * size]
    heads: int
    size: int


@dataclass(frozen=True)
class _Scores:
    """What goes into the softmax."""

    product: onnx.NodeProto
    scale: float
    added: str | None  # what is added
    visible: np.ndarray | None  # what is not replaced by a hiding number


def match_attentions(graph: Graph) -> list[Attention | Unmatched]:
    """Every softmax whose result weighs run-time values, matched or with the reason against it."""
    found: list[Attention | Unmatched] = []
    for index, node in enumerate(graph.nodes):
        if node.op_type != "Softmax" or node.domain not in STANDARD:
            continue
        weights, guarded = _guard(graph, index)
        product = _single_reader(graph, weights, "MatMul")
        if product is None or product.input[0] != weights or graph.constant(product.input[1]) is not None:
            continue
        name = node.name or node.output[0]
        match = _match(graph, node, product, name, guarded)
        found.append(Unmatched(name, match.reason) if isinstance(match, Refused) else match)
    return found


def _match(
    graph: Graph, softmax: onnx.NodeProto, product: onnx.NodeProto, name: str, guarded: bool
) -> Attention | Refused:
    axis = attribute(softmax, "axis", -1 if graph.opset >= _SOFTMAX_LAST else 1)
    if axis not in (-1, 3):
        return Refused(f"its softmax is over axis {axis} instead of the last of four")
    scores = _scores(graph, softmax.input[0])
    if isinstance(scores, Refused):
        return scores
    q, q_scale = _split(graph, scores.product.input[0])
    k, k_scale = _transposed_keys(graph, scores.product.input[1])
    v, v_scale = _split(graph, product.input[1])
    if q is None or k is None or v is None or v_scale != 1.0:
        return Refused("q, k or v is no projection [batch, length, heads · size] that is split into heads")
    merged = _merged(graph, product, (*q.shape[:2], v.heads, v.size))
    if merged is None:
        return Refused("its heads are not joined as [batch, length, heads · size] behind it")
    batch, queries, keys = q.shape[0], q.shape[1], k.shape[1]
    if k.shape[:2] != v.shape[:2] or batch != k.shape[0] or None in (batch, queries, keys):
        return Refused("it is not known whether q, k and v have the same batch, and k and v the same length")
    if not (q.heads == k.heads == v.heads and q.size == k.size):
        return Refused("q, k and v have different heads")
    if any(graph.types.get(each.value) != TensorProto.FLOAT for each in (q, k, v)):
        return Refused("it is not computed in float32")
    mask = _mask(graph, scores, (batch, q.heads, queries, keys))
    if isinstance(mask, Refused):
        return mask
    place, output = merged
    bias, causal = mask
    scale = scores.scale * q_scale * k_scale
    return Attention(name, place, output, q.value, k.value, v.value, bias, q.heads, scale, causal, guarded)


def _node(graph: Graph, name: str, *ops: str) -> onnx.NodeProto | None:
    """The standard node that makes a value, if it is one of these operators."""
    node = graph.nodes[graph.producer[name]] if name in graph.producer else None
    return node if node is not None and node.domain in STANDARD and node.op_type in ops else None


def _single_reader(graph: Graph, name: str, *ops: str) -> onnx.NodeProto | None:
    """The only reader of a value, if it is one of these operators."""
    index = graph.only_consumer(name)
    node = None if index is None else graph.nodes[index]
    return node if node is not None and node.domain in STANDARD and node.op_type in ops else None


def _guard(graph: Graph, softmax: int) -> tuple[str, bool]:
    """The probabilities behind Where(IsNaN(p), 0, p), if that is what reads p; and whether it is."""
    p = graph.nodes[softmax].output[0]
    readers = [graph.nodes[index] for index in graph.consumers.get(p, []) if index >= 0]
    if len(readers) != 2 or len(graph.consumers[p]) != 2:
        return p, False
    tests = [node for node in readers if node.op_type == "IsNaN" and node.domain in STANDARD]
    picks = [node for node in readers if node.op_type == "Where" and node.domain in STANDARD]
    if len(tests) != 1 or len(picks) != 1:
        return p, False
    test, pick = tests[0], picks[0]
    guards = pick.input[0] == test.output[0] and graph.scalar(pick.input[1]) == 0.0 and pick.input[2] == p
    alone = graph.only_consumer(test.output[0]) is not None
    return (pick.output[0], True) if guards and alone else (p, False)


def _unscaled(graph: Graph, name: str) -> tuple[str, float]:
    """What a value is a scalar multiple of, and the factor."""
    factor = 1.0
    while (node := _node(graph, name, "Mul", "Div")) is not None:
        scalars = [number(graph, item) for item in node.input]
        if scalars[1] is not None and (node.op_type == "Mul" or scalars[1] != 0.0):
            name = node.input[0]
            factor = factor * scalars[1] if node.op_type == "Mul" else factor / scalars[1]
        elif scalars[0] is not None and node.op_type == "Mul":
            name, factor = node.input[1], factor * scalars[0]
        else:
            break
    return name, factor


def _scores(graph: Graph, name: str) -> _Scores | Refused:
    """Follows the scores back to the product of q and k; each value on the way has no other reader."""
    reason = "its scores are used elsewhere, or are no product of queries and keys with a mask added"
    added: str | None = None
    visible: np.ndarray | None = None
    if (node := _node(graph, name, "Where")) is not None:
        hidden = _hidden_by_where(graph, node)
        if isinstance(hidden, Refused) or graph.only_consumer(name) is None:
            return hidden if isinstance(hidden, Refused) else Refused(reason)
        name, visible = hidden
    if (node := _node(graph, name, "Add")) is not None:
        sides = [item for item in node.input if _node(graph, _unscaled(graph, item)[0], "MatMul") is not None]
        if len(sides) != 1 or graph.only_consumer(name) is None:
            return Refused(reason)
        added = node.input[1] if sides[0] == node.input[0] else node.input[0]
        name = sides[0]
    factor = 1.0
    while graph.only_consumer(name) is not None:
        node = _node(graph, name, "MatMul")
        if node is not None:
            return _Scores(node, factor, added, visible)
        node = _node(graph, name, "Mul", "Div")
        if node is None:
            break
        inner = [item for item in node.input if number(graph, item) is None]
        if len(inner) != 1 or (node.op_type == "Div" and inner[0] != node.input[0]):
            break
        by = number(graph, node.input[1] if inner[0] == node.input[0] else node.input[0])
        if by is None or (node.op_type == "Div" and by == 0.0):
            break
        factor = factor * by if node.op_type == "Mul" else factor / by
        name = inner[0]
    return Refused(reason)


def _hidden_by_where(graph: Graph, node: onnx.NodeProto) -> tuple[str, np.ndarray] | Refused:
    """The scores in Where(visible, scores, low) or Where(hidden, low, scores), and what is visible."""
    condition = spread(graph, node.input[0])
    low = [graph.scalar(item) for item in node.input[1:]]
    if condition is None or condition.dtype != np.bool_:
        return Refused("a mask that is not known before it runs replaces scores instead of being added")
    if low[1] is not None and low[1] <= HIDDEN:
        return node.input[1], condition
    if low[0] is not None and low[0] <= HIDDEN:
        return node.input[2], np.logical_not(condition)
    return Refused("its scores are replaced by something else than a number that hides them")


def _mask(
    graph: Graph, scores: _Scores, shape: tuple[Dim, Dim, Dim, Dim]
) -> tuple[str | None, bool] | Refused:
    """What remains to be added, and whether the mask hides exactly what comes later."""
    bias, causal = scores.added, False
    if bias is not None:
        content = spread(graph, bias)
        visible = None if content is None else visible_by(content)
        if visible is not None and hides_nothing(visible):
            bias = None
        elif visible is not None and hides_later(visible, *shape[2:]):
            bias, causal = None, True
    if scores.visible is not None and not hides_nothing(scores.visible):
        if not hides_later(scores.visible, *shape[2:]):
            return Refused("a mask that hides other keys than the later ones replaces scores")
        causal = True
    if scores.added is None:
        return None, causal
    added = shape_of(graph, scores.added)
    fits = added is not None and len(added) <= len(shape)
    if not fits or any(
        dim not in (1, whole) for dim, whole in zip(reversed(added or ()), reversed(shape), strict=False)
    ):
        return Refused("it is not known whether its mask fits its scores")
    if bias is not None and graph.types.get(bias) != TensorProto.FLOAT:
        return Refused("its mask is not float32")
    return bias, causal


def _view(graph: Graph, name: str) -> _Heads | None:
    """A value [batch, length, heads, size] as what it was reshaped from."""
    node = _node(graph, name, "Reshape")
    source = None if node is None else graph.shapes.get(node.input[0])
    shape = None if node is None else reshaped(graph, node)
    if node is None or source is None or shape is None or len(source) != 3 or len(shape) != 4:
        return None
    heads, size = shape[2:]
    if not isinstance(heads, int) or not isinstance(size, int) or source[2] != heads * size:
        return None
    return _Heads(node.input[0], source, heads, size) if _one_equal(source[:2], shape[:2]) else None


def _split(graph: Graph, name: str) -> tuple[_Heads | None, float]:
    """A value [batch, heads, length, size] as a projection, and the scalar it is multiplied by."""
    name, factor = _unscaled(graph, name)
    node = _node(graph, name, "Transpose")
    if node is None or attribute(node, "perm", []) != _PER_HEAD:
        return None, factor
    inner, more = _unscaled(graph, node.input[0])
    return _view(graph, inner), factor * more


def _transposed_keys(graph: Graph, name: str) -> tuple[_Heads | None, float]:
    """The same for [batch, heads, size, length]."""
    name, factor = _unscaled(graph, name)
    node = _node(graph, name, "Transpose", "Reshape")
    if node is None:
        return None, factor
    if node.op_type == "Reshape":
        inner = _through_three_dimensions(graph, node)
        found, more = (None, 1.0) if inner is None else _split(graph, inner)
        return found, factor * more
    perm: list[int] = attribute(node, "perm", [])
    if perm == [0, 2, 3, 1]:
        inner, more = _unscaled(graph, node.input[0])
        return _view(graph, inner), factor * more
    if perm == [0, 1, 3, 2]:
        found, more = _split(graph, node.input[0])
        return found, factor * more
    return None, factor


def _through_three_dimensions(graph: Graph, last: onnx.NodeProto) -> str | None:
    """The value [b, h, l, d] of Reshape(Transpose(Reshape(value, [-1, l, d]), [0, 2, 1]), [b, h, d, l])."""
    middle = _node(graph, last.input[0], "Transpose")
    first = None if middle is None else _node(graph, middle.input[0], "Reshape")
    if middle is None or first is None or attribute(middle, "perm", []) != [0, 2, 1]:
        return None
    source = shape_of(graph, first.input[0])
    flat, whole = sizes_in(graph, first.input[1]), sizes_in(graph, last.input[1])
    if source is None or flat is None or whole is None or len(source) != 4 or None in source:
        return None
    batch, heads, length, size = source
    if len(flat) != 3 or flat[1:] != (length, size) or len(whole) != 4:
        return None
    target = (batch, heads, size, length)
    differs = [axis for axis in range(4) if whole[axis] != target[axis]]
    return first.input[0] if all(whole[axis] == -1 for axis in differs) and len(differs) <= 1 else None


def _merged(graph: Graph, product: onnx.NodeProto, split: Shape) -> tuple[int, str] | None:
    """Index and result of the Reshape behind a Transpose that joins heads [batch, length, heads, size]."""
    transposed = _single_reader(graph, product.output[0], "Transpose")
    if transposed is None or attribute(transposed, "perm", []) != _PER_HEAD:
        return None
    index = graph.only_consumer(transposed.output[0])
    node = None if index is None else graph.nodes[index]
    if index is None or node is None or node.op_type != "Reshape" or node.domain not in STANDARD:
        return None
    shape = reshaped(graph, node, split)
    columns = math.prod(size for size in split[2:] if isinstance(size, int))
    if shape is None or len(shape) != 3 or shape[2] != columns:
        return None
    return (index, node.output[0]) if _one_equal(shape[:2], split[:2]) else None


def _one_equal(before: Shape, after: Shape) -> bool:
    """Whether one of two sizes is known to stay the same; then so does the other, if their product does."""
    return any(old == new and old is not None for old, new in zip(before, after, strict=True))
