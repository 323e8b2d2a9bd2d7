"""Attentions of a graph, whichever way they are written, and the factor on logits of another head size.

μP wants logits that stay in size while q and k align over training: q·kᵀ grows with the head size d then, so
that the factor s(d) on it must fall as 1/d (arXiv 2203.03466; 1/√d is right at the start only). Where heads
multiply and d stays, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan, nan, prod, sqrt

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from sparsify.errors import UserError
from sparsify.graph.dimensions import operator_name
from sparsify.graph.roles import data_nodes
from sparsify.graph.verify import propagate
from sparsify.passes.contract import Pass, PassResult, mark
from sparsify.planning import Plan
from sparsify.scaling import AttentionScale
from sparsify.scaling.base import Base

_MULTIPLY = torch.ops.aten.mul.Tensor
_FUSED = frozenset({"scaled_dot_product_attention", "ScaledDotProductAttention"})
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})
_MOVES = frozenset(
    {"transpose", "permute", "view", "reshape", "expand", "contiguous", "clone", "unsqueeze", "squeeze"}
    | {"flatten", "unflatten", "to", "_to_copy", "type_as", "t", "mT"}
)
_ON_LOGITS = _MOVES | frozenset(
    {"mul", "div", "add", "sub", "masked_fill", "where", "tanh", "clamp", "clamp_min", "maximum"}
)


@dataclass(frozen=True)
class Attention:
    """One product of queries with keys whose logits go through a softmax.

    Attributes:
        node: The product, or the call of the fused attention.
        head_size: The size that the product sums over.
        scale: Factor on the logits: fused, or constants that queries, keys or logits are multiplied by. NaN
            where something is multiplied by no constant: a learned scale, a norm (cosine attention).
    """

    node: Node
    head_size: int
    scale: float


def attentions(module: GraphModule) -> tuple[Attention, ...]:
    """All attentions of a canonical graph, in the order of execution."""
    data = data_nodes(module.graph)
    found = []
    for node in module.graph.nodes:
        name = operator_name(node)
        if name in _FUSED:
            size = _size(node)
            if size is not None:
                found.append(Attention(node, size, _fused_scale(module, node, size) * _before(node, data)))
        elif name in _PRODUCTS and len(_operands(node)) == 2 and all(one in data for one in _operands(node)):
            size, after = _size(node), _to_softmax(node)
            if size is not None and after is not None:
                alpha = node.kwargs.get("alpha", 1.0) if name == "baddbmm" else 1.0
                fused = float(alpha) if isinstance(alpha, (int, float)) else nan
                found.append(Attention(node, size, _before(node, data) * fused * after))
    return tuple(found)


def attention_scales(module: GraphModule, base: Base) -> tuple[AttentionScale, ...]:
    """The factors on logits that keep s(d)·d at the base's.

    Args:
        module: The graph of the model.
        base: A base that fits the model.

    Raises:
        UserError: Head sizes differ, and the graph does not say what the logits are multiplied by.
    """
    found = []
    for own, old in zip(attentions(module), base.attentions, strict=True):
        if own.head_size != old.head_size:
            if isnan(own.scale) or old.scale is None:
                raise UserError(
                    f"base: node {own.node.name} has heads of {own.head_size} and the base heads of "
                    f"{old.head_size}, and what its logits are multiplied by is no constant of the graph (a "
                    "learned scale, or a norm); take a base with the same head size and fewer heads"
                )
            factor = old.scale * old.head_size / (own.scale * own.head_size)
            found.append(AttentionScale(own.node.name, old.head_size, own.head_size, factor))
    return tuple(found)


class AttentionMultiplier(Pass):
    """Multiplies the queries of every attention whose scaling asks for it; counts the multiplications."""

    name = "attention multiplier"

    def run(self, graph: GraphModule, plan: Plan) -> PassResult:
        """Inserts one `aten.mul` before every such product."""
        calls = self._calls(graph)
        for node, factor in calls:
            with graph.graph.inserting_before(node):
                scaled = graph.graph.call_function(_MULTIPLY, (_operands(node)[0], factor))
            scaled.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
            mark(scaled, self.name, node.name)
            _replace_first(node, scaled)
        if calls:
            graph.recompile()
            propagate(graph)
        return PassResult(graph, len(calls))

    def ensures(self, graph: GraphModule, plan: Plan) -> None:
        """Every such product reads its multiplied queries."""
        for node, factor in self._calls(graph):
            source = _operands(node)[0]
            if source.target is not _MULTIPLY or source.args[1] != factor:
                raise self.failed(f"node {node.name} does not read queries multiplied by {factor}")

    def _calls(self, graph: GraphModule) -> list[tuple[Node, float]]:
        wanted = {one.node: one.factor for one in self.context.scaling.attention if one.factor != 1.0}
        return [(node, wanted[node.name]) for node in graph.graph.nodes if node.name in wanted]


def _operands(node: Node) -> list[Node]:
    name = operator_name(node)
    first = 1 if name == "baddbmm" else 0
    given = node.args[1] if name == "einsum" else (*node.args, *node.kwargs.values())[first : first + 2]
    return [one for one in given if isinstance(one, Node)] if isinstance(given, (list, tuple)) else []


def _replace_first(node: Node, scaled: Node) -> None:
    if operator_name(node) == "einsum":
        node.update_arg(1, [scaled, *_operands(node)[1:]])
    else:
        node.update_arg(1 if operator_name(node) == "baddbmm" else 0, scaled)


def _size(node: Node) -> int | None:
    """The size that a product sums over."""
    operands = _operands(node)
    value = operands[0].meta.get("val") if operands else None
    if not isinstance(value, Tensor):
        return None
    if operator_name(node) != "einsum":
        size = value.shape[-1]
        return size if isinstance(size, int) else None
    terms, _, out = str(node.args[0]).replace(" ", "").partition("->")
    first, _, second = terms.partition(",")
    if not out or "." in terms:
        return None
    sizes = [value.shape[i] for i, letter in enumerate(first) if letter in second and letter not in out]
    return prod(sizes) if sizes and all(isinstance(size, int) for size in sizes) else None


def _fused_scale(module: GraphModule, node: Node, size: int) -> float:
    if node.op == "call_module":
        scale: object = module.get_submodule(str(node.target)).scale
    else:
        scale = node.kwargs.get("scale", node.args[6] if len(node.args) > 6 else None)
    return float(scale) if isinstance(scale, (int, float)) else 1 / sqrt(size)


def _before(node: Node, data: frozenset[Node]) -> float:
    """Product of the constants that queries and keys are multiplied by."""
    total = 1.0
    for operand in _operands(node)[:2]:
        while True:
            factor, source = _step(operand, data)
            total *= factor
            if source is None:
                break
            operand = source
    return total


def _step(node: Node, data: frozenset[Node]) -> tuple[float, Node | None]:
    """One step back from queries or keys: what it multiplies by, and what comes before it, if that counts."""
    if node.op != "call_function":
        return 1.0, None
    name, sources = operator_name(node), node.all_input_nodes
    if name in _MOVES:
        return 1.0, sources[0]
    if name in {"mul", "div"}:
        factor = _constant(node)
        return (nan, None) if factor is None else (factor, sources[0])
    if name == "add":  # a bias for all positions: a parameter, perhaps multiplied
        varying = [source for source in sources if source in data]
        return 1.0, varying[0] if len(varying) == 1 and len(sources) == 2 else None
    return 1.0, None


def _to_softmax(node: Node) -> float | None:
    """Product of the constants between a product and a softmax, or None where there is no softmax."""
    total, reached = 1.0, node
    for reached in _chain(node):
        if operator_name(reached) in {"mul", "div"}:
            total *= _constant(reached) or nan
        if operator_name(reached) in {"softmax", "_softmax"}:
            return total
    return None


def _chain(node: Node) -> Iterator[Node]:
    """What reads a node, one after the other, through operators that logits go through."""
    while True:
        node_users = [user for user in node.users if operator_name(user) not in {"sym_size", "size"}]
        if not node_users:
            return
        node = node_users[0]
        yield node
        if operator_name(node) not in _ON_LOGITS:
            return


def _constant(node: Node) -> float | None:
    """The number that a node multiplies its input by, where it does just that."""
    name = operator_name(node)
    if name not in {"mul", "div"} or len(node.all_input_nodes) != 1:
        return None
    numbers = [one for one in node.args if isinstance(one, (int, float))]
    if len(numbers) != 1 or not numbers[0]:
        return None
    return float(numbers[0]) if name == "mul" else 1 / float(numbers[0])
