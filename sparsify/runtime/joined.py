"""Nodes that stand for several sparse nodes: chains of convolutions, and two linear layers in one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import helper

from sparsify.runtime import conv_chain, feed_forward
from sparsify.runtime.session import DOMAIN

OPERATORS = (conv_chain.OPERATOR, feed_forward.OPERATOR)


def is_joined(node: onnx.NodeProto) -> bool:
    """Whether a node stands for several."""
    return node.domain == DOMAIN and node.op_type in OPERATORS


def joined_name(nodes: Sequence[onnx.NodeProto]) -> str:
    """What a node is called that stands for these."""
    return f"{nodes[0].name}..{nodes[-1].name}"


def join(nodes: Sequence[onnx.NodeProto]) -> onnx.NodeProto:
    """One node for several: SparseConv nodes in an order that runs, or two SparseLinear nodes.

    Args:
        nodes: What all but the last give is read among them only.
    """
    if nodes[0].op_type == "SparseConv":
        return conv_chain.join(nodes)
    return feed_forward.join(nodes)


def separate(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The sparse nodes that a node stands for, in order.

    Args:
        node: One of `OPERATORS`.

    Raises:
        UnsupportedModelError: Its attributes or inputs do not belong together.
    """
    if node.op_type == conv_chain.OPERATOR:
        return conv_chain.separate(node)
    return feed_forward.separate(node)


def separated(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, with those that a node stands for in its place."""
    for node in nodes:
        if is_joined(node):
            yield from separate(node)
        else:
            yield node


def output_shape(node: onnx.NodeProto, shape: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Shape of what a SparseLinear or SparseConv node gives, and its number of columns.

    Args:
        node: One that a joined node stands for.
        shape: Of its X: [..., in_features], or [N, C, H, W].
    """
    if node.op_type == "SparseConv":
        y = conv_chain.output_shape(node, shape)
        return y, math.prod(y) // y[1]
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    return (*shape[:-1], settings["out_features"]), math.prod(shape[:-1])
