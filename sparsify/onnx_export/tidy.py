"""Puts readable names into an exported ONNX model and takes out what the exporter left for itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

import onnx

_SCOPES = "pkg.torch.onnx.name_scopes"
_IR_VERSION = 9  # opset 20 needs no more, and ONNX Runtime 1.17 reads no more
_LAST_OPSET = 20


def tidy(model: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    """Names nodes after the user's modules and dimensions after their meaning, in place.

    The exporter's own notes (stack traces, source paths, its graph's text) are dropped.

    Args:
        model: An exported model.
        properties: Written to the model's metadata.
    """
    _name_nodes(model.graph)
    _name_dimensions(model.graph)
    for holder in _holders(model.graph):
        del holder.metadata_props[:]
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(properties))
    if all(entry.version <= _LAST_OPSET for entry in model.opset_import if entry.domain in ("", "ai.onnx")):
        model.ir_version = min(model.ir_version, _IR_VERSION)


def _name_nodes(graph: onnx.GraphProto) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        owner = _owner(node, constants)
        name = f"{owner}/{node.op_type}" if owner else node.name or node.op_type
        unique, suffix = name, 0
        while unique in taken:
            suffix += 1
            unique = f"{name}_{suffix}"
        taken.add(unique)
        node.name = unique


def _owner(node: onnx.NodeProto, constants: set[str]) -> str:
    """Path of the module that a node comes from: its weight's, or the innermost one of the trace."""
    weight = node.input[1] if len(node.input) > 1 else ""
    if weight in constants and weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    path = [scope for scope in ast.literal_eval(scopes) if scope]
    return path[-2] if len(path) > 1 else ""


def _name_dimensions(graph: onnx.GraphProto) -> None:
    names: dict[str, str] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        for position, dim in enumerate(dims):
            symbol = dim.dim_param
            if re.fullmatch(r"s\d+", symbol) and symbol not in names:
                names[symbol] = _meaning(position, len(dims), set(names.values()))
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(names) + r")\b")
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda found: names[found.group()], dim.dim_param)


def _meaning(position: int, rank: int, taken: set[str]) -> str:
    if position == 0:
        name = "batch"
    elif rank <= 3 and position == 1:
        name = "sequence"
    else:
        name = {2: "height", 3: "width"}.get(position, f"dim_{position}") if rank == 4 else f"dim_{position}"
    unique, suffix = name, 1
    while unique in taken:
        suffix += 1
        unique = f"{name}_{suffix}"
    return unique


def _holders(
    graph: onnx.GraphProto,
) -> Iterator[onnx.GraphProto | onnx.NodeProto | onnx.ValueInfoProto | onnx.TensorProto]:
    yield graph
    yield from graph.node
    yield from graph.input
    yield from graph.output
    yield from graph.value_info
    yield from graph.initializer
