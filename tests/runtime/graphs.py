"""Small ONNX models around the sparse operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sparsify.runtime import layouts

DOMAIN = "ai.sparsify"


def masked(shape: tuple[int, ...], density: float, seed: int = 0) -> np.ndarray:
    """A float32 weight with about `density` of its entries non-zero."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


def values(shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Standard normal float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sparse_node(
    packed: layouts.Packed,
    *,
    bias: bool = False,
    residual: bool = False,
    activation: str = "none",
    x: str = "x",
    y: str = "y",
    name: str = "sparse",
) -> onnx.NodeProto:
    """A node whose packed tensors are named `<name>.<index>`."""
    weights = [f"{name}.{i}" for i in range(len(packed.tensors))]
    return helper.make_node(
        packed.operator,
        [x, "bias" if bias else "", "residual" if residual else "", *weights],
        [y],
        name=name,
        domain=DOMAIN,
        activation=activation,
        **packed.attributes,
    )


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    inputs: dict[str, list[Any]],
    outputs: tuple[str, ...] = ("y",),
    metadata: dict[str, str] | None = None,
) -> onnx.ModelProto:
    """A model with float inputs; outputs have no declared shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    built = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    helper.set_model_props(built, metadata or {})
    return built


def one_node(
    packed: layouts.Packed,
    x_shape: list[Any],
    *,
    bias: np.ndarray | None = None,
    residual: list[Any] | None = None,
    activation: str = "none",
    tensors: tuple[np.ndarray, ...] | None = None,
) -> bytes:
    """A model of one sparse node; `tensors` replaces the packed ones."""
    node = sparse_node(packed, bias=bias is not None, residual=residual is not None, activation=activation)
    constants = {f"sparse.{i}": tensor for i, tensor in enumerate(tensors or packed.tensors)}
    if bias is not None:
        constants["bias"] = bias
    inputs = {"x": x_shape} | ({} if residual is None else {"residual": residual})
    return model([node], constants, inputs).SerializeToString()


def sparse_mlp(path: Path, *, metadata: dict[str, str] | None = None, density: float = 0.3) -> Path:
    """Two sparse layers with everything that fuses: [batch, 24] -> [batch, 24]."""
    first = layouts.pack_linear(masked((40, 24), density, 2))
    second = layouts.pack_linear(masked((24, 40), density, 3))
    nodes = [
        sparse_node(first, bias=True, activation="gelu", y="h", name="first"),
        sparse_node(second, activation="gelu_tanh", x="h", y="y", name="second"),
    ]
    nodes[1].input[2] = "x"
    constants = {"bias": values((40,), 4)}
    constants |= {f"first.{i}": tensor for i, tensor in enumerate(first.tensors)}
    constants |= {f"second.{i}": tensor for i, tensor in enumerate(second.tensors)}
    onnx.save(model(nodes, constants, {"x": ["batch", 24]}, metadata=metadata), path)
    return path
