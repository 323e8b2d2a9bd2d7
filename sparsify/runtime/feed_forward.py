"""Two sparse linear layers as one node, and the same as the nodes that it stands for.

`SparseFeedForward` reads X, a residual or nothing, then for each layer its bias, where it has one, and its
packed tensors. The first layer's attributes begin with `hidden_`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
from onnx import helper

from sparsify.errors import UnsupportedModelError
from sparsify.runtime.session import DOMAIN

OPERATOR = "SparseFeedForward"

_FIXED = 3  # inputs of SparseLinear before its packed tensors: X, bias, residual
_CLIP = ("clip_min", "clip_max")


def join(nodes: Sequence[onnx.NodeProto]) -> onnx.NodeProto:
    """One SparseFeedForward for two SparseLinear nodes.

    Args:
        nodes: The first has no residual, the second reads what it gives, which nothing else does; biases and
            packed tensors are initializers.
    """
    first, second = nodes
    attributes: dict[str, Any] = {}
    for prefix, node in (("hidden_", first), ("", second)):
        settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        for name in ("layout", "activation", *_CLIP):
            if name in settings:
                attributes[prefix + name] = settings[name]
        attributes[f"{prefix}bias"] = int(bool(node.input[1]))
        attributes["in_features" if prefix else "hidden_features"] = settings["in_features"]
        attributes["hidden_features" if prefix else "out_features"] = settings["out_features"]
    constants = [name for node in (first, second) for name in (node.input[1], *node.input[_FIXED:]) if name]
    return helper.make_node(
        OPERATOR,
        [first.input[0], second.input[2], *constants],
        [second.output[0]],
        name=f"{first.name}..{second.name}",
        domain=DOMAIN,
        steps=f"{_line(first.name)}\n{_line(second.name)}",
        **attributes,
    )


def separate(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The two SparseLinear nodes that a SparseFeedForward stands for, in order.

    Args:
        node: The value between them is named after its output.

    Raises:
        UnsupportedModelError: Its attributes or inputs do not belong together.
    """
    settings = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    between = f"{node.output[0]}/hidden"
    try:
        names = settings["steps"].decode().split("\n")
        tensors = len(node.input) - 2 - settings["hidden_bias"] - settings["bias"]
        constants = iter(node.input[2:])
        nodes = []
        for i, (prefix, ends) in enumerate((("hidden_", ("in", "hidden")), ("", ("hidden", "out")))):
            bias = next(constants) if settings[f"{prefix}bias"] else ""
            packed = [next(constants) for _ in range(tensors // 2)]
            attributes = {
                name: settings[prefix + name]
                for name in ("layout", "activation", *_CLIP)
                if prefix + name in settings
            }
            attributes |= {
                own: settings[f"{end}_features"]
                for own, end in zip(("in_features", "out_features"), ends, strict=True)
            }
            x, residual, y = (
                (node.input[0], "", between) if i == 0 else (between, node.input[1], node.output[0])
            )
            inputs = [x, bias, residual, *packed]
            nodes.append(
                helper.make_node("SparseLinear", inputs, [y], name=names[i], domain=DOMAIN, **attributes)
            )
    except (KeyError, IndexError, StopIteration) as error:
        raise UnsupportedModelError(
            f"node {node.name!r}: its attributes or inputs do not describe two layers ({error!r}); "
            "lower again"
        ) from error
    return nodes


def _line(name: str) -> str:
    return name.replace("\n", " ")
