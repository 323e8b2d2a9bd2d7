"""Finds damage in a model before anything is built on it, and puts its nodes into an order that runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
from onnx import TensorProto

from sparsify.errors import SparsifyError, UserError
from sparsify.lowering.graph import reads, walk_subgraphs

ITEM_BYTES: Mapping[int, int] = {
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL), 1),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16, TensorProto.FLOAT16, TensorProto.BFLOAT16), 2),
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT32), 4),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64, TensorProto.COMPLEX64), 8),
    TensorProto.COMPLEX128: 16,
}
"""Bytes of an element of the types that fill whole bytes."""


def check_model(model: onnx.ModelProto, name: str) -> None:
    """Looks for damage that would otherwise surface as a stranger's error far from its cause.

    Args:
        model: With its external data loaded.
        name: What to call it in messages.

    Raises:
        UserError: No opset, constants of the wrong length, values that are made twice or nowhere.
    """
    if not model.opset_import:
        raise UserError(f"{name}: declares no opset; it is damaged, export it again")
    for tensor in stored_tensors(model):
        expected = _expected_bytes(tensor)
        if expected is not None and len(tensor.raw_data) != expected:
            raise UserError(
                f"{name}: constant {tensor.name!r} of shape {list(tensor.dims)} needs {expected} bytes "
                f"and has {len(tensor.raw_data)}; the file or its external data is damaged"
            )
    _check_values(model.graph, name)


def in_order(graph: onnx.GraphProto, name: str) -> None:
    """Sorts the nodes so that every value is made before it is read, if they are not sorted yet.

    Args:
        graph: Changed in place.
        name: What to call the model in messages.

    Raises:
        UserError: The nodes form a cycle.
    """
    position = {output: i for i, node in enumerate(graph.node) for output in node.output if output}
    needs = {
        i: {position[value] for value in reads(node) if value in position}
        for i, node in enumerate(graph.node)
    }
    if all(max(before, default=-1) < i for i, before in needs.items()):
        return
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        cycle = ", ".join(repr(graph.node[i].name or graph.node[i].output[0]) for i in error.args[1][:-1])
        raise UserError(f"{name}: nodes {cycle} wait for each other; the model is damaged") from error
    copies = onnx.GraphProto(node=[graph.node[i] for i in order])
    del graph.node[:]
    graph.node.extend(copies.node)


def check_written(lowered: Path, source: Path) -> None:
    """Runs onnx's checker over a lowered file.

    Args:
        lowered: The file that was written.
        source: What it was made from; what the checker holds against that, it may hold against the other.

    Raises:
        SparsifyError: Only the lowered file fails.
    """
    try:
        onnx.checker.check_model(str(lowered))
    except onnx.checker.ValidationError as error:
        try:
            onnx.checker.check_model(str(source))
        except onnx.checker.ValidationError:
            return
        raise SparsifyError(f"{source}: its lowered form is no valid ONNX: {error}") from error


def stored_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initializers of the main graph and of all subgraphs."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for inner in walk_subgraphs(node):
            yield from inner.initializer


def _expected_bytes(tensor: onnx.TensorProto) -> int | None:
    if not tensor.HasField("raw_data") or tensor.data_type not in ITEM_BYTES:
        return None
    return int(math.prod(tensor.dims)) * ITEM_BYTES[tensor.data_type]


def _check_values(graph: onnx.GraphProto, name: str) -> None:
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    made: set[str] = set()
    for node in graph.node:
        for output in node.output:
            if output and (output in made or output in known):
                raise UserError(f"{name}: value {output!r} is made twice; the model is damaged")
            made.add(output)
    for node in graph.node:
        for value in node.input:
            if value not in known and value not in made:
                raise UserError(
                    f"{name}: node {node.name or node.op_type!r} reads {value!r}, which is no input, "
                    "no constant and no other node's result; the model is damaged, export it again"
                )
    for result in graph.output:
        if result.name not in known and result.name not in made:
            raise UserError(f"{name}: nothing makes its output {result.name!r}; the model is damaged")
