"""Removes what a graph does not need to compute its outputs: checks, no-ops, in-place forms, dead nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from sparsify.errors import UnsupportedModelError
from sparsify.graph.canonical_lift import Lifted, is_counter

aten = torch.ops.aten

_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
    torch._check,
}
_ALIASES = {aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default}
_CASTS = {
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,
}
_VIEWS = {
    aten.view.default,
    aten.reshape.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.transpose.int,
    aten.permute.default,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.t.default,
    aten.diagonal.default,
    aten.narrow.default,
    aten.split.Tensor,
    aten.chunk.default,
    aten.unbind.int,
    aten.detach.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.view_as.default,
    aten.expand_as.default,
    operator.getitem,
}


def arguments(node: Node) -> dict[str, Any]:
    """Arguments of an ATen call by name, defaults included."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {}
    bound: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def value(node: Any) -> Any:
    """The fake value of a node: a FakeTensor, a SymInt, or a tuple of them."""
    return node.meta.get("val") if isinstance(node, Node) else node


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal; asks nothing of the shape environment."""
    return bool(_expression(a) == _expression(b))


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def is_open(size: Any) -> bool:
    """Whether a size can vary; a SymInt may be a constant that tracing found out."""
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def same_shape(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are known to be equal."""
    return len(a) == len(b) and all(same_size(x, y) for x, y in zip(a, b, strict=True))


def replace(node: Node, other: Node) -> None:
    """Replaces a node by one that exists, and erases it."""
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def drop_checks(lifted: Lifted) -> None:
    """Erases assertions and the counting of BatchNorm's batches, then what only they used."""
    for node in reversed(list(lifted.graph.nodes)):
        if node.op != "call_function":
            continue
        counts = node.target == aten.add_.Tensor and _reads_counter(node.args[0])
        if (node.target in _CHECKS or counts) and not node.users:
            lifted.graph.erase_node(node)
    sweep(lifted.graph)


def _reads_counter(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr" and is_counter(str(node.target))


def sweep(graph: Graph) -> None:
    """Erases nodes without users; inputs stay, since they are the signature."""
    for node in reversed(list(graph.nodes)):
        if node.op not in ("placeholder", "output") and not node.users and not _mutates(node):
            graph.erase_node(node)


def _mutates(node: Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def drop_no_ops(lifted: Lifted) -> None:
    """Erases aliases, casts to the own dtype, whole slices; casts that do something keep only their dtype."""
    for node in list(lifted.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ALIASES:
            replace(node, node.args[0])
        elif node.target in _CASTS:
            _simplify_cast(node)
        elif (node.target == aten.slice.Tensor and _is_whole(node)) or (
            node.target == aten.detach.default and _is_buffer(node.args[0], lifted)
        ):
            replace(node, node.args[0])


def _is_buffer(node: Any, lifted: Lifted) -> bool:
    return node.op == "get_attr" and not isinstance(lifted.tensors.get(str(node.target)), nn.Parameter)


def _simplify_cast(node: Node) -> None:
    source = node.args[0]
    before, after = value(source), value(node)
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or not isinstance(source, Node):
        return
    if before.device != after.device or before.layout != after.layout:
        return
    if arguments(node).get("memory_format") not in (None, torch.preserve_format):
        return
    if before.dtype == after.dtype:
        replace(node, source)
    else:
        node.target = aten.to.dtype
        node.args, node.kwargs = (source, after.dtype), {}


def _is_whole(node: Node) -> bool:
    bound = arguments(node)
    before, after = value(bound["self"]), value(node)
    return bound["start"] in (None, 0) and bound["step"] == 1 and same_shape(before.shape, after.shape)


def functionalise(lifted: Lifted) -> bool:
    """Replaces in-place calls by their functional forms where nothing else can see the change.

    Returns:
        False when some in-place call writes through a view: torch's own functionalisation is then needed.
    """
    order = {node: position for position, node in enumerate(lifted.graph.nodes)}
    for node in list(lifted.graph.nodes):
        if node.op == "call_function" and node.target == aten.detach_.default:
            node.target = aten.detach.default
        if node.op != "call_function" or not _mutates(node):
            continue
        functional = _functional(node)
        changed = node.args[0] if node.args else None
        if functional is None or not isinstance(changed, Node):
            return False
        if changed.op in ("get_attr", "placeholder"):
            raise UnsupportedModelError(
                f"node {node.name} ({node.target}): the model changes '{changed.target}' in place when it is "
                "called; work on a clone, or return the new value"
            )
        if changed.target in _VIEWS or _viewed_later(changed, node, order):
            return False
        changed.replace_all_uses_with(node, delete_user_cb=_after(order, node))
        node.target = functional
    return True


def _after(order: dict[Node, int], node: Node) -> Callable[[Node], bool]:
    return lambda user: order.get(user, -1) > order[node]


def _viewed_later(changed: Node, node: Node, order: dict[Node, int]) -> bool:
    """Whether a view of `changed`, made before `node`, is read after it."""
    waiting = [u for u in changed.users if u.target in _VIEWS and order[u] < order[node]]
    while waiting:
        view = waiting.pop()
        if any(order.get(user, -1) > order[node] for user in view.users):
            return True
        waiting.extend(user for user in view.users if user.target in _VIEWS)
    return False


def _functional(node: Node) -> Any:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    packet = getattr(aten, target._opname.removesuffix("_"), None) if target._opname.endswith("_") else None
    overload = getattr(packet, target._overloadname, None) if packet is not None else None
    return overload if isinstance(overload, torch._ops.OpOverload) else None
