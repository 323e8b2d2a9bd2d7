"""Tiny ONNX models, and a lowering of them that forces sparse operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsify.lowering import LowerReport, lower

Shape = Sequence[int | str | None]


def sparse_array(*shape: int, density: float = 0.2, seed: int = 0) -> np.ndarray:
    """Normal float32 numbers, most of them zero."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape, dtype=np.float32)
    return np.where(generator.random(shape) < density, values, np.float32(0)).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    constants: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 20,
    types: Mapping[str, int] | None = None,
    extra_inputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A checked model; values are float32 unless `types` says otherwise."""
    kinds = types or {}

    def infos(values: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
            for name, shape in values.items()
        ]

    graph = helper.make_graph(
        list(nodes),
        "test",
        [*infos(inputs), *extra_inputs],
        infos(outputs),
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    built = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(built, full_check=True)
    return built


def node(op: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its output."""
    return helper.make_node(op, list(inputs), [output], name=f"{output}_{op}", **attributes)


def lowered(
    built: onnx.ModelProto, folder: Path, layout: str | None = "csr"
) -> tuple[LowerReport, onnx.ModelProto]:
    """Lowers a model, parity check included, and reads the result."""
    source, target = folder / "source.onnx", folder / "lowered.onnx"
    onnx.save(built, source)
    report = lower(source, target, layout=layout)
    return report, onnx.load(target)


def operators(built: onnx.ModelProto) -> list[str]:
    """Operators of the main graph in order."""
    return [item.op_type for item in built.graph.node]


def attributes(item: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node, strings decoded."""
    values = {entry.name: helper.get_attribute_value(entry) for entry in item.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
