"""What the rules that raise calls to modules have in common: their result, and a module around a weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Node

from sparsify.graph.canonical_clean import arguments
from sparsify.graph.canonical_owners import Owned, Owners, meta_settings


@dataclass(frozen=True)
class Raised:
    """A module call that replaces an ATen call: path of the module and the nodes it is called with."""

    path: str
    inputs: tuple[Node, ...]


Rule = Callable[[Node, Owners, Mapping[str, Any]], Raised | None]


def owned(kind: type[nn.Module], settings: dict[str, Any], tensors: list[tuple[str, str, bool]]) -> Owned:
    """A module of this class with these arguments and (leaf, source path, transposed) tensors."""
    return Owned(kind, tuple(sorted(settings.items())), tuple(tensors))


def weighted(
    node: Node, owners: Owners, kind: type[nn.Module], settings: dict[str, Any], *, transposed: bool = False
) -> Raised | None:
    """A module with a weight and perhaps a bias, called with the node's `input`."""
    bound = arguments(node)
    x = bound.get("input", bound.get("self"))
    return with_tensors(node, owners, kind, settings, x, bound["weight"], bound.get("bias"), transposed)


def with_tensors(
    node: Node,
    owners: Owners,
    kind: type[nn.Module],
    settings: dict[str, Any],
    x: Any,
    weight_node: Any,
    bias_node: Any,
    transposed: bool = False,
) -> Raised | None:
    """A module with these tensors called with `x`; None where that is impossible or its place is taken."""
    weight, bias = owners.parameter(weight_node), owners.parameter(bias_node)
    if weight is None or (bias_node is not None and bias is None) or not isinstance(x, Node):
        return None
    tensor = owners.lifted.tensors[weight]
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return None
    path, weight = owners.owner_of(weight, node)
    if path == weight and _reader_count(node, weight) > 1:
        return None
    tensors = [("weight", weight, transposed)]
    if bias is not None:
        tensors.append(("bias", owners.beside(path, "bias", bias), False))
    full = settings | meta_settings(owners.lifted.tensors[weight])
    if not owners.place(path, owned(kind, full, tensors)):
        return None
    return Raised(path, (x,))


def _reader_count(node: Node, path: str) -> int:
    return sum(len(n.users) for n in node.graph.nodes if n.op == "get_attr" and n.target == path)
