"""Matches ungrouped convolutions over one or two dimensions with constant weights.

One dimension is two with a height of 1: X [n, in, length] is X [n, in, 1, length].
"""

from __future__ import annotations

import numpy as np
import onnx

from sparsify.lowering.candidate import Array, Candidate, ConvGeometry, LeftAlone, float_weight, vector_of
from sparsify.lowering.graph import Dim, Graph, Refused, attribute
from sparsify.lowering.steps import TO_FLOAT, TO_HALF, Step, inverse

_ONE_ROW = Step("Unsqueeze", (2,))


def match_conv(graph: Graph, index: int, name: str) -> Candidate | LeftAlone | None:
    """Reads a Conv node with constant weight [out, in, kh, kw] or [out, in, k].

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
    weight = _weight(node, raw)
    if isinstance(weight, Refused):
        return _left(name, raw, weight)
    bias = _bias(graph, node, weight.shape[0])
    geometry = conv_geometry(graph, node, weight.shape[2:])
    if isinstance(bias, Refused):
        return _left(name, raw, bias)
    if isinstance(geometry, Refused):
        return _left(name, raw, geometry)
    flat, half = weight.ndim == 3, isinstance(raw, np.ndarray) and raw.dtype == np.float16
    return Candidate(
        index=index,
        node=name,
        op="Conv",
        weight=weight[:, :, None, :] if flat else weight,
        weight_key=(node.input[1], "Conv"),
        x=node.input[0],
        output=node.output[0],
        bias=bias,
        geometry=geometry,
        consumed=(index,),
        before=((TO_FLOAT,) if half else ()) + ((_ONE_ROW,) if flat else ()),
        after=(inverse((_ONE_ROW,)) or () if flat else ()) + ((TO_HALF,) if half else ()),
        axis=weight.ndim - 1,
        rank=weight.ndim,
    )


def conv_geometry(graph: Graph, node: onnx.NodeProto, kernel: tuple[int, ...]) -> ConvGeometry | Refused:
    """Strides, explicit pads and dilations of a convolution, auto_pad resolved.

    Args:
        graph: The indexed graph, for the input's size.
        node: The Conv node.
        kernel: Its kernel's size, one or two numbers; one becomes the second of two.
    """
    dimensions = len(kernel)
    strides, dilations = (
        tuple(int(item) for item in attribute(node, name, [1] * dimensions))
        for name in ("strides", "dilations")
    )
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        found = _same(graph, node, kernel, strides, dilations)
        if isinstance(found, Refused):
            return found
        pads = found
    elif mode == "VALID":
        pads = (0,) * (2 * dimensions)
    else:
        pads = tuple(int(item) for item in attribute(node, "pads", [0] * (2 * dimensions)))
    if min(pads) < 0:
        return Refused("negative padding")
    if (len(strides), len(dilations), len(pads)) != (dimensions, dimensions, 2 * dimensions):
        return Refused(f"strides, dilations or pads do not fit a {dimensions}-dimensional kernel")
    if dimensions == 1:
        return ConvGeometry((1, strides[0]), (0, pads[0], 0, pads[1]), (1, dilations[0]))
    return ConvGeometry(
        (strides[0], strides[1]), (pads[0], pads[1], pads[2], pads[3]), (dilations[0], dilations[1])
    )


def _same(
    graph: Graph,
    node: onnx.NodeProto,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[int, ...] | Refused:
    sizes: tuple[Dim, ...] = graph.shapes.get(node.input[0], (None, None, *(None for _ in kernel)))[2:]
    if not len(sizes) == len(strides) == len(dilations) == len(kernel):
        return Refused(f"input, strides or dilations do not fit a {len(kernel)}-dimensional kernel")
    before, after = [], []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (taps - 1) * dilation + 1
        if stride == 1:
            total = reach - 1
        elif isinstance(size, int):
            total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        else:
            return Refused("auto_pad with a stride, and the input's size is not in the file")
        small = total // 2
        upper = attribute(node, "auto_pad", "") == "SAME_UPPER"
        before.append(small if upper else total - small)
        after.append(total - small if upper else small)
    return (*before, *after)


def _weight(node: onnx.NodeProto, raw: Array | Refused) -> Array | Refused:
    weight = float_weight(raw, node.input[1])
    if isinstance(weight, Refused):
        return weight
    if weight.ndim not in (3, 4):
        return Refused(f"a {weight.ndim - 2}-dimensional convolution; only 1 and 2 dimensions are lowered")
    groups = attribute(node, "group", 1)
    return weight if groups == 1 else Refused(f"a grouped convolution (group = {groups})")


def _left(name: str, raw: Array | Refused, why: Refused) -> LeftAlone:
    if isinstance(raw, Refused):
        return LeftAlone(name, "Conv", (), 1.0, why.reason)
    density = float(np.count_nonzero(raw)) / max(1, raw.size)
    return LeftAlone(name, "Conv", tuple(raw.shape), density, why.reason)


def _bias(graph: Graph, node: onnx.NodeProto, outputs: int) -> Array | Refused | None:
    if len(node.input) < 3 or not node.input[2]:
        return None
    value = graph.constant(node.input[2])
    if isinstance(value, Refused):
        return Refused(f"its bias cannot be taken in: {value.reason}")
    bias = vector_of(value, outputs, axis=1, rank=1)
    return Refused("the bias is a run-time value or no float constant") if bias is None else bias
