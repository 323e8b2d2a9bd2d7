"""Operators that only move elements, tried on codes in their place to see where each channel goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from sparsify.graph.dimensions import Call, operator_name
from sparsify.graph.extents import Extents, results

_MOVES = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "_reshape_copy",
        "view_copy",
        "flatten",
        "ravel",
        "unflatten",
        "squeeze",
        "squeeze_copy",
        "unsqueeze",
        "unsqueeze_copy",
        "permute",
        "permute_copy",
        "transpose",
        "transpose_copy",
        "swapaxes",
        "swapdims",
        "t",
        "mT",
        "adjoint",
        "numpy_T",
        "movedim",
        "moveaxis",
        "expand",
        "expand_copy",
        "broadcast_to",
        "expand_as",
        "view_as",
        "reshape_as",
        "repeat",
        "tile",
        "repeat_interleave",
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "cat",
        "concat",
        "concatenate",
        "stack",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "select",
        "slice",
        "narrow",
        "constant_pad_nd",
        "flip",
        "roll",
    ]
)
_PADDING = ("constant_pad_nd", "pad")


def moves(node: Node) -> bool:
    """Whether a node does nothing but move, repeat, drop or pad elements."""
    return node.op == "call_function" and (operator_name(node) in _MOVES or pads_a_number(node))


def pads_a_number(node: Node) -> bool:
    """Whether a node puts a number around a tensor."""
    name = operator_name(node)
    return name == _PADDING[0] or (name == _PADDING[1] and Call.of(node)["mode"] == "constant")


def apply(
    node: Node, stand_in: Callable[[Node], Tensor], extents: Extents, padding: Any = None
) -> list[Tensor]:
    """Runs a moving operator on other tensors of the shapes of its arguments.

    Args:
        node: A node for which `moves` holds.
        stand_in: Gives a tensor of the shape of each tensor argument.
        extents: Sizes on the example, for arguments that are computed from sizes.
        padding: What padded places hold; as in the node where None.

    Returns:
        One tensor for each result.
    """

    def replaced(argument: Node) -> Any:
        value = extents.value(argument)
        return stand_in(argument) if isinstance(value, Tensor) else value

    args, kwargs = map_arg((node.args, dict(node.kwargs)), replaced)
    if padding is not None and pads_a_number(node):
        between = () if operator_name(node) == _PADDING[0] else ("constant",)
        args, kwargs = (args[0], args[1] if len(args) > 1 else kwargs["pad"], *between, padding), {}
    target: Any = node.target
    with torch.no_grad():
        return list(results(target(*args, **kwargs)))


def tensor_inputs(node: Node, extents: Extents) -> list[Node]:
    """Arguments of a node that are tensors, each once."""
    return [source for source in node.all_input_nodes if isinstance(extents.value(source), Tensor)]


def along(vector: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """A vector along one dimension of a shape, without memory for the others."""
    view = [1] * len(shape)
    view[axis] = vector.numel()
    return vector.view(view).expand(shape)
