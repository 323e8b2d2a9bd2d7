"""Finds two sparse linear layers, one behind the other, to become one node.

A SparseFeedForward finishes some hundred hidden units of a few rows of X at a time, in the form that the
second product takes, so they are neither transposed nor written to memory.
"""

from __future__ import annotations

import onnx

from sparsify.lowering.chains import Region, joins, readers


def find_pairs(model: onnx.ModelProto) -> list[Region]:
    """Pairs of sparse linear layers of which the second alone reads what the first gives.

    Args:
        model: A lowered model, its nodes in an order that runs. Of more than two layers in a row the first
            two are a pair, then the next two.
    """
    nodes = model.graph.node
    constants = {tensor.name for tensor in model.graph.initializer}
    constants -= {value.name for value in model.graph.input}
    able = {i for i, node in enumerate(nodes) if joins(node, "SparseLinear", constants)}
    read_by = readers(model)
    pairs: list[Region] = []
    for i in sorted(able):
        if i not in able or nodes[i].input[2]:
            continue
        after = read_by.get(nodes[i].output[0], set())
        if len(after) != 1 or not after <= able:
            continue
        (second,) = after
        if nodes[second].input[0] == nodes[i].output[0] != nodes[second].input[2]:
            pairs.append((i, second))
            able -= {i, second}
    return pairs
