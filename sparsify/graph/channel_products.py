"""What products of activations say about channels: those along batch dimensions (heads) are the same.

What a product contracts or spans belongs to its meaning (the head size, the length): it must stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from sparsify.graph.channels import Channels, Labels, where
from sparsify.graph.dimensions import Call
from sparsify.graph.movement import tensor_inputs


def _outer_axes(node: Node, source: Any, channels: Channels, inner: int) -> dict[int, Tensor]:
    """Atoms of an operand along its batch dimensions, counted from the back; others are blocked."""
    rank = len(channels.extents.shape(source))
    labels = channels.of(source)
    reason = f"{where(node)} contracts or spans it"
    channels.block_all(labels, reason, range(rank - inner, rank))
    return {axis - rank: atoms for axis, atoms in labels.items() if axis < rank - inner}


def matmul(node: Node, channels: Channels) -> Sequence[Labels]:
    """Products of the last two dimensions, plus something that broadcasts to them."""
    batches = [_outer_axes(node, source, channels, 2) for source in tensor_inputs(node, channels.extents)]
    return [_joined(node, batches, len(channels.extents.shape(node)), channels)]


def _joined(node: Node, batches: Sequence[Mapping[int, Tensor]], rank: int, channels: Channels) -> Labels:
    joined: dict[int, Tensor] = {}
    for batch in batches:
        for axis, atoms in batch.items():
            known = joined.setdefault(axis + rank, atoms)
            if known.numel() != atoms.numel():
                more, fewer = sorted((known, atoms), key=Tensor.numel, reverse=True)
                fewer, joined[axis + rank] = fewer.repeat_interleave(more.numel() // fewer.numel()), more
                known, atoms = more, fewer
            channels.same(known, atoms, node)
    return joined


def attention(node: Node, channels: Channels) -> Sequence[Labels]:
    """Heads are batch dimensions; with fewer keys than queries, each key serves a run of queries."""
    operands: list[Any] = [node.kwargs.get(name) for name in ("query", "key", "value")]
    operands[: min(3, len(node.args))] = node.args[:3]
    batches = [_outer_axes(node, source, channels, 2) for source in operands]
    mask: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if isinstance(mask, Node):
        shape, rank = channels.extents.shape(mask), len(channels.extents.shape(mask))
        labels = {axis - rank: atoms for axis, atoms in channels.of(mask).items() if shape[axis] != 1}
        batches.append(labels)
    return [_joined(node, batches, len(channels.extents.shape(node)), channels)]


def einsum(node: Node, channels: Channels) -> Sequence[Labels]:
    """An Einstein sum; letters that every operand and the result share are its batch."""
    call = Call.of(node)
    terms, _, result = str(call["equation"]).replace(" ", "").partition("->")
    letters = terms.split(",")
    found: dict[str, Tensor] = {}
    for term, operand in zip(letters, call["tensors"], strict=True):
        for axis, atoms in channels.of(operand).items():
            letter = term[axis]
            if not all(letter in other for other in [*letters, result]):
                channels.block(atoms, f"{where(node)} contracts or spans it")
            channels.same(found.setdefault(letter, atoms), atoms, node)
    return [{axis: found[letter] for axis, letter in enumerate(result) if letter in found}]
