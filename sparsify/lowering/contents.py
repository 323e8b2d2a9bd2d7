"""Says what is in an ONNX file without changing it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sparsify.lowering.candidate import LeftAlone
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from sparsify.lowering.model_file import read_model


def describe(path: str | Path) -> dict[str, Any]:
    """Lists the weight-bearing nodes of an ONNX file.

    Args:
        path: Any ONNX file.

    Returns:
        `kind` ("onnx"), `file`, `inputs[{name, shape}]`, `outputs[{name, shape}]`, `parameters` (entries of
        all stored constants) and `layers[{node, op, shape, density, note}]`; the note says what keeps a node
        dense.

    Raises:
        UserError: The file is missing, damaged or not ONNX, or a weight is not finite.
    """
    graph = Graph(read_model(Path(path)))
    source = graph.model.graph
    layers = []
    for match in match_all(graph):
        note = match.reason if isinstance(match, LeftAlone) else ""
        row = {"node": match.node, "op": match.op, "shape": list(match.shape), "density": match.density}
        layers.append(row | {"note": note})
    given = [value.name for value in source.input if value.name not in graph.overridable]
    return {
        "kind": "onnx",
        "file": str(path),
        "inputs": [_value(graph, name) for name in given],
        "outputs": [_value(graph, value.name) for value in source.output],
        "parameters": sum(math.prod(tensor.dims) for tensor in source.initializer),
        "layers": layers,
    }


def _value(graph: Graph, name: str) -> dict[str, Any]:
    return {"name": name, "shape": list(graph.shapes.get(name, ()))}
