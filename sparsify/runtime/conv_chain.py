"""A chain of sparse convolutions as one node, and the same as the nodes that it stands for.

`SparseConvChain` reads outer maps, then for every step its bias, where it has one, and its packed tensors.
Its attributes hold one entry a step (2 or 4 where a convolution's own has so many); values are numbered, the
outer maps first, then what the steps give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from sparsify.errors import UnsupportedModelError
from sparsify.runtime.session import DOMAIN

OPERATOR = "SparseConvChain"

_PAIRS = {"kernel_shapes": "kernel_shape", "strides": "strides", "dilations": "dilations"}
_FIXED = 3  # inputs of SparseConv before its packed tensors: X, bias, residual


def outer_values(nodes: Sequence[onnx.NodeProto]) -> tuple[str, ...]:
    """Names of the maps that SparseConv nodes read and do not make themselves, in the order of first use."""
    made = {node.output[0] for node in nodes}
    reads = (value for node in nodes for value in (node.input[0], node.input[2]) if value)
    return tuple(dict.fromkeys(value for value in reads if value not in made))


def join(nodes: Sequence[onnx.NodeProto]) -> onnx.NodeProto:
    """One SparseConvChain for SparseConv nodes in an order that runs; it gives what the last gives.

    Args:
        nodes: Their biases and packed tensors are initializers, and only they read what all but the last of
            them give.
    """
    outer = outer_values(nodes)
    number = {value: i for i, value in enumerate((*outer, *(node.output[0] for node in nodes)))}
    settings = [{item.name: helper.get_attribute_value(item) for item in node.attribute} for node in nodes]
    constants = [[node.input[1], *node.input[_FIXED:]] for node in nodes]
    attributes: dict[str, Any] = {
        "count": len(nodes),
        "maps": len(outer),
        "sources": [number[node.input[0]] for node in nodes],
        "residuals": [number[node.input[2]] if node.input[2] else -1 for node in nodes],
        "biases": [int(bool(node.input[1])) for node in nodes],
        "tensors": [len(node.input) - _FIXED for node in nodes],
        "pads": [pad for setting in settings for pad in setting["pads"]],
        "steps": "\n".join(node.name.replace("\n", " ") for node in nodes),
        "layouts": "\n".join(setting["layout"].decode() for setting in settings),
        "activations": "\n".join(setting["activation"].decode() for setting in settings),
    }
    for name in ("in_channels", "out_channels"):
        attributes[name] = [setting[name] for setting in settings]
    for name, of_step in _PAIRS.items():
        attributes[name] = [size for setting in settings for size in setting[of_step]]
    if any("clip_min" in setting for setting in settings):
        for name in ("clip_min", "clip_max"):
            attributes[name] = [setting.get(name, 0.0) for setting in settings]
    return helper.make_node(
        OPERATOR,
        [*outer, *(name for names in constants for name in names if name)],
        [nodes[-1].output[0]],
        name=f"{nodes[0].name}..{nodes[-1].name}",
        domain=DOMAIN,
        **attributes,
    )


def separate(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The SparseConv nodes that a SparseConvChain stands for, in order.

    Args:
        node: What its steps give is named after its own output.

    Raises:
        UnsupportedModelError: Its attributes or inputs do not belong together.
    """
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    try:
        return _separated(node, settings)
    except (KeyError, IndexError) as error:
        raise UnsupportedModelError(
            f"node {node.name!r}: its attributes or inputs do not describe a chain ({error!r}); lower again"
        ) from error


def output_shape(node: onnx.NodeProto, shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of what a SparseConv node gives for a map of shape [N, C, H, W]."""
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    sides = []
    for axis in range(2):
        reach = settings["dilations"][axis] * (settings["kernel_shape"][axis] - 1)
        pads = settings["pads"][axis] + settings["pads"][axis + 2]
        sides.append((shape[2 + axis] + pads - reach - 1) // settings["strides"][axis] + 1)
    return shape[0], settings["out_channels"], *sides


def _separated(node: onnx.NodeProto, settings: dict[str, Any]) -> list[onnx.NodeProto]:
    count, maps = settings["count"], settings["maps"]
    names, layouts, activations = (
        settings[name].decode().split("\n") for name in ("steps", "layouts", "activations")
    )
    values = [*node.input[:maps], *(f"{node.output[0]}/step{i}" for i in range(count - 1)), node.output[0]]
    constants = iter(node.input[maps:])
    steps = []
    for i in range(count):
        attributes: dict[str, Any] = {
            "layout": layouts[i],
            "activation": activations[i],
            "in_channels": settings["in_channels"][i],
            "out_channels": settings["out_channels"][i],
            "pads": settings["pads"][4 * i : 4 * i + 4],
        }
        attributes |= {own: settings[name][2 * i : 2 * i + 2] for name, own in _PAIRS.items()}
        if activations[i] == "clip":
            attributes |= {name: settings[name][i] for name in ("clip_min", "clip_max")}
        residual = settings["residuals"][i]
        bias = next(constants, "") if settings["biases"][i] else ""
        tensors = [next(constants, "") for _ in range(settings["tensors"][i])]
        inputs = [values[settings["sources"][i]], bias, values[residual] if residual >= 0 else "", *tensors]
        output = values[maps + i]
        steps.append(
            helper.make_node("SparseConv", inputs, [output], name=names[i], domain=DOMAIN, **attributes)
        )
    return steps
