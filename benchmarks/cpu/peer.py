"""Runs the other engine in its own environment, on the same weights in the same plain ONNX."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import defs, helper, numpy_helper

from benchmarks.cpu.cells import Cell

SIDE = Path(__file__).with_name("peer_side.py")
OPSET = 17
"""One that the peer has all operators of."""

_SAME_BUT_FOR_TYPES = ("Cast", "Identity", "IsNaN", "Reshape", "Shape")


def readable(path: Path) -> Path:
    """The same network at an opset that the peer reads; made once.

    Args:
        path: A plain ONNX file.

    Raises:
        ValueError: An operator of it is not in that opset.
    """
    model = onnx.load(path)
    if all(entry.version <= OPSET for entry in model.opset_import):
        return path
    target = path.with_name(f"{path.stem}-opset{OPSET}.onnx")
    if target.exists():
        return target
    newest = max(entry.version for entry in model.opset_import)
    _spell_out_gelu(model)
    _spell_out_norms(model)
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            _axes_as_attribute(node, model)
            continue
        since = defs.get_schema(node.op_type, newest).since_version
        if since > OPSET and node.op_type not in _SAME_BUT_FOR_TYPES:
            raise ValueError(f"{path}: {node.op_type} is not in opset {OPSET}")
    for entry in model.opset_import:
        entry.version = min(entry.version, OPSET)
    model.ir_version = min(model.ir_version, 8)
    beside = target.with_suffix(".part")
    onnx.save(model, beside)
    return beside.replace(target)


def _axes_as_attribute(node: onnx.NodeProto, model: onnx.ModelProto) -> None:
    """Moves the axes of a mean from its second input, where they are since opset 18."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if len(node.input) > 1:
        axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axes", axes))
    for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes"]:
        node.attribute.remove(attribute)


def _spell_out_gelu(model: onnx.ModelProto) -> None:
    """Replaces Gelu by ½ x (1 + erf(x / √2)), the form that engines know."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gelu":
            nodes.append(node)
            continue
        x, y = node.input[0], node.output[0]
        names = [f"{y}.{part}" for part in ("scaled", "erf", "shifted", "product")]
        for operator, inputs, output in (
            ("Mul", [x, "gelu.root"], names[0]),
            ("Erf", [names[0]], names[1]),
            ("Add", [names[1], "gelu.one"], names[2]),
            ("Mul", [x, names[2]], names[3]),
            ("Mul", [names[3], "gelu.half"], y),
        ):
            nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}.node"))
    if len(nodes) == len(model.graph.node):
        return
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, value in (("gelu.root", math.sqrt(0.5)), ("gelu.one", 1.0), ("gelu.half", 0.5)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))


def _spell_out_norms(model: onnx.ModelProto) -> None:
    """Replaces norms over the last axis by means, a difference and a root, the form that the peer knows."""
    nodes = []
    for node in model.graph.node:
        if node.op_type != "LayerNormalization":
            nodes.append(node)
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        (x, scale, *bias), y = node.input, node.output[0]
        at = {part: f"{y}.{part}" for part in ("mean", "from", "two", "squares", "variance", "eps", "safe")}
        at |= {part: f"{y}.{part}" for part in ("root", "unit", "scaled")}
        means = {"axes": [-1], "keepdims": 1}
        for operator, inputs, output, options in (
            ("ReduceMean", [x], at["mean"], means),
            ("Sub", [x, at["mean"]], at["from"], {}),
            ("Pow", [at["from"], at["two"]], at["squares"], {}),
            ("ReduceMean", [at["squares"]], at["variance"], means),
            ("Add", [at["variance"], at["eps"]], at["safe"], {}),
            ("Sqrt", [at["safe"]], at["root"], {}),
            ("Div", [at["from"], at["root"]], at["unit"], {}),
            ("Mul", [at["unit"], scale], at["scaled"] if bias else y, {}),
            *([("Add", [at["scaled"], bias[0]], y, {})] if bias else []),
        ):
            nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}.node", **options))
        for name, value in ((at["two"], 2.0), (at["eps"], attributes.get("epsilon", 1e-5))):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def time_peer(cell: Cell, plain: Path, python: str, seconds: float) -> list[dict[str, Any]]:
    """One row for every batch size: the peer's time and its speedup over ONNX Runtime in its own process.

    Args:
        cell: With one sparsity.
        plain: The network or layer in standard operators, zeros in place.
        python: Interpreter of the peer's environment.
        seconds: For each engine and batch size.

    Raises:
        RuntimeError: The other process failed.
    """
    batches = ",".join(map(str, cell.batches))
    command = [python, str(SIDE), str(readable(plain)), "--batch", batches]
    command += ["--threads", str(cell.threads), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the peer failed: {done.stderr.strip().splitlines()[-1:]}")
    return [
        {"sparsity": cell.sparsities[0], "batch": row["batch"], "dense_ms": row["ort_ms"]}
        | {"sparse_ms": row["deepsparse_ms"], "speedup": row["speedup"], "range": row["range"]}
        | {"relative_error": row["relative_error"]}
        for row in json.loads(done.stdout.strip().splitlines()[-1])["results"]
    ]
