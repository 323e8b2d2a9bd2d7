"""Joins sparse convolutions that feed each other into one node, which runs image by image.

A region of SparseConv nodes becomes a SparseConvChain where everything that its nodes give, except the last,
is read inside the region only. It grows backwards from its last node: a node joins once all its readers have
joined. So every path that leaves the region leaves from its result, and none comes back.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from sparsify.lowering.graph import reads
from sparsify.runtime.joined import join, joined_name
from sparsify.runtime.session import DOMAIN

LEAST = 2
"""Convolutions of a chain, at least."""

Region = tuple[int, ...]
"""Positions of nodes in a model, ascending."""


def find_regions(model: onnx.ModelProto) -> list[Region]:
    """The largest regions of sparse convolutions with one result, no node in two of them.

    Args:
        model: A lowered model, its nodes in an order that runs.
    """
    nodes = model.graph.node
    constants = {tensor.name for tensor in model.graph.initializer}
    constants -= {value.name for value in model.graph.input}
    able = {i for i, node in enumerate(nodes) if joins(node, "SparseConv", constants)}
    read_by = readers(model)
    regions = []
    for last in sorted(able, reverse=True):
        if last not in able:
            continue
        region = {last}
        # A node comes after everything that it reads, so its readers are settled before it is looked at.
        for i in range(last - 1, -1, -1):
            if i in able and read_by.get(nodes[i].output[0], {-1}) <= region:
                region.add(i)
        able -= region
        if len(region) >= LEAST:
            regions.append(tuple(sorted(region)))
    return regions[::-1]


def with_joined(model: onnx.ModelProto, regions: Sequence[Region]) -> onnx.ModelProto:
    """A copy of the model in which every region is one node, standing where its last node stood.

    Args:
        model: A lowered model.
        regions: From `find_regions`, or `feed_forward.find_pairs`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = list(model.graph.node)
    together = {region[-1]: join([nodes[i] for i in region]) for region in regions}
    gone = {i for region in regions for i in region[:-1]}
    inner = {nodes[i].output[0] for i in gone}
    del result.graph.node[:]
    result.graph.node.extend(together.get(i, node) for i, node in enumerate(nodes) if i not in gone)
    infos = [value for value in model.graph.value_info if value.name not in inner]
    del result.graph.value_info[:]
    result.graph.value_info.extend(infos)
    return result


def joined_names(model: onnx.ModelProto, regions: Sequence[Region]) -> dict[str, str]:
    """Name of the node that each region becomes, by the names of its nodes.

    Args:
        model: A lowered model.
        regions: From `find_regions`, or `feed_forward.find_pairs`.
    """
    found = {}
    for region in regions:
        nodes = [model.graph.node[i] for i in region]
        found.update(dict.fromkeys((node.name for node in nodes), joined_name(nodes)))
    return found


def joins(node: onnx.NodeProto, operator: str, constants: set[str]) -> bool:
    """Whether a node is this operator of ours, and its weights, and bias if it has one, are constants."""
    if node.domain != DOMAIN or node.op_type != operator or not node.input[0]:
        return False
    return all(name in constants for name in (*node.input[3:], *node.input[1:2]) if name)


def readers(model: onnx.ModelProto) -> dict[str, set[int]]:
    """Positions of the nodes that read each value; -1 for a graph output."""
    found: dict[str, set[int]] = {}
    for i, node in enumerate(model.graph.node):
        for name in reads(node):
            found.setdefault(name, set()).add(i)
    for value in model.graph.output:
        found.setdefault(value.name, set()).add(-1)
    return found
