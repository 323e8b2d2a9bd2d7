"""Matches two-dimensional, ungrouped convolutions with constant weights."""

from __future__ import annotations

import numpy as np
import onnx

from sparsify.lowering.candidate import Array, Candidate, ConvGeometry, LeftAlone, float_weight, vector_of
from sparsify.lowering.graph import Graph, Refused, attribute


def match_conv(graph: Graph, index: int, name: str) -> Candidate | LeftAlone | None:
    """Reads a Conv node with constant weight [out, in, kh, kw].

    Args:
        graph: The indexed graph.
        index: Index of a Conv node.
        name: Name to report it by.

    Returns:
        A candidate, the reason against it, or None where the weight is a run-time value.
    """
    node = graph.nodes[index]
    raw = graph.constant(node.input[1])
    if raw is None:
        return None
    shape = () if isinstance(raw, Refused) else tuple(raw.shape)
    density = 1.0 if isinstance(raw, Refused) else float(np.count_nonzero(raw)) / max(1, raw.size)
    weight = float_weight(raw, node.input[1])
    if isinstance(weight, Refused):
        return LeftAlone(name, "Conv", shape, density, weight.reason)
    problem = _unsupported(node, weight)
    bias = None if problem else _bias(graph, node, shape[0])
    geometry = None if problem else conv_geometry(graph, node, shape[2:])
    if isinstance(bias, Refused):
        problem = bias.reason
    if isinstance(geometry, Refused):
        problem = geometry.reason
    if problem or isinstance(bias, Refused) or isinstance(geometry, Refused):
        return LeftAlone(name, "Conv", shape, density, problem)
    return Candidate(
        index=index,
        node=name,
        op="Conv",
        weight=weight,
        weight_key=(node.input[1], str(geometry)),
        x=node.input[0],
        output=node.output[0],
        bias=bias,
        geometry=geometry,
        consumed=(index,),
    )


def conv_geometry(graph: Graph, node: onnx.NodeProto, kernel: tuple[int, ...]) -> ConvGeometry | Refused:
    """Strides, explicit pads and dilations of a 2-D convolution, auto_pad resolved.

    Args:
        graph: The indexed graph, for the input's height and width.
        node: The Conv node.
        kernel: (kh, kw).
    """
    strides = _pair(attribute(node, "strides", [1, 1]))
    dilations = _pair(attribute(node, "dilations", [1, 1]))
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID":
        return ConvGeometry(strides, (0, 0, 0, 0), dilations)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return _same(graph, node, kernel, strides, dilations, upper=mode == "SAME_UPPER")
    top, left, bottom, right = (int(item) for item in attribute(node, "pads", [0, 0, 0, 0]))
    if min(top, left, bottom, right) < 0:
        return Refused("negative padding")
    return ConvGeometry(strides, (top, left, bottom, right), dilations)


def _same(
    graph: Graph,
    node: onnx.NodeProto,
    kernel: tuple[int, ...],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    *,
    upper: bool,
) -> ConvGeometry | Refused:
    shape = graph.shapes.get(node.input[0], (None,) * 4)
    before, after = [], []
    for size, taps, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True):
        reach = (taps - 1) * dilation + 1
        if stride == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        else:
            return Refused("auto_pad with a stride, and the input's size is not in the file")
        small = total // 2
        before.append(small if upper else total - small)
        after.append(total - small if upper else small)
    return ConvGeometry(strides, (before[0], before[1], after[0], after[1]), dilations)


def _unsupported(node: onnx.NodeProto, weight: Array) -> str:
    if weight.ndim != 4:
        return f"a {weight.ndim - 2}-dimensional convolution; only 2 dimensions are lowered"
    groups = attribute(node, "group", 1)
    if groups != 1:
        return f"a grouped convolution (group = {groups})"
    return ""


def _bias(graph: Graph, node: onnx.NodeProto, outputs: int) -> Array | Refused | None:
    if len(node.input) < 3 or not node.input[2]:
        return None
    bias = vector_of(graph.constant(node.input[2]), outputs, axis=1, rank=1)
    return Refused("the bias is not a float32 constant") if bias is None else bias


def _pair(values: list[int]) -> tuple[int, int]:
    return int(values[0]), int(values[1])
