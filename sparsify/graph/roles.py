"""What comes before and after each node: roles of layers, residual additions, what depends on inputs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.fx import Graph, GraphModule, Node

from sparsify.graph.dimensions import operator_name

_PRODUCTS = frozenset(
    {"matmul", "mm", "bmm", "addmm", "baddbmm", "linear", "einsum", "mv", "dot"}
    | {"scaled_dot_product_attention", "ScaledDotProductAttention"}
)


def data_nodes(graph: Graph) -> frozenset[Node]:
    """Nodes whose values depend on the model's inputs, and not on their shapes only."""
    data: set[Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and operator_name(node) in {"sym_size", "sym_numel"}:
            continue
        if node.op == "placeholder" or any(source in data for source in node.all_input_nodes):
            data.add(node)
    return frozenset(data)


def residual_additions(graph: Graph, data: frozenset[Node], layers: frozenset[Node]) -> frozenset[Node]:
    """Additions of two activations that different layers made.

    Each value is traced back to what made it: a layer, a product, or what first joined two others. An
    addition of two things made by the same one (rotated queries, an activation function spelled out) is none.
    """
    origin: dict[Node, Node | None] = {}
    additions = set()
    for node in graph.nodes:
        sources = [source for source in node.all_input_nodes if source in data]
        origins = {origin.get(source) for source in sources}
        if node.op == "placeholder" or node in layers or operator_name(node) in _PRODUCTS:
            origin[node] = node
        elif len(origins) == 1:
            origin[node] = origins.pop()
        else:
            origin[node] = node if origins else None
            if operator_name(node) == "add" and _same_shape(sources):
                additions.add(node)
    return frozenset(additions)


def _same_shape(sources: list[Node]) -> bool:
    shapes = [getattr(source.meta.get("val"), "shape", None) for source in sources]
    return len(shapes) == 2 and shapes[0] is not None and shapes[0] == shapes[1]


def roles(graph: Graph, layers: Mapping[Node, str], additions: frozenset[Node]) -> dict[Node, str]:
    """Role of each layer node.

    Args:
        graph: The canonical graph.
        layers: Layer nodes and what they are: ``embedding``, ``depthwise``, ``grouped`` or ``dense``.
        additions: Residual additions.

    Returns:
        ``embedding``, ``depthwise``, ``grouped``; else ``readout`` where no layer follows and the output is
        reached without a residual addition; else ``input`` where no layer comes before; else ``hidden``.
    """
    before, after, reaches = _upstream(graph, layers), _downstream(graph, layers), _reaches(graph, additions)
    result = {}
    for node, kind in layers.items():
        if kind != "dense":
            result[node] = kind
        elif node not in after and node in reaches:
            result[node] = "readout"
        else:
            result[node] = "hidden" if node in before else "input"
    return result


def _upstream(graph: Graph, layers: Mapping[Node, str]) -> set[Node]:
    """Nodes that some layer comes before."""
    found: set[Node] = set()
    for node in graph.nodes:
        if any(source in layers or source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def _downstream(graph: Graph, layers: Mapping[Node, str]) -> set[Node]:
    """Nodes that some layer comes after."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if any(user in layers or user in found for user in node.users):
            found.add(node)
    return found


def _reaches(graph: Graph, additions: frozenset[Node]) -> set[Node]:
    """Nodes from which the output is reached without a residual addition."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if any(user.op == "output" or (user in found and user not in additions) for user in node.users):
            found.add(node)
    return found


def batch_norm_follows(module: GraphModule, node: Node) -> bool:
    """Whether a batch normalization reads what a node computes."""
    return any(
        (
            user.op == "call_module"
            and isinstance(module.get_submodule(str(user.target)), nn.modules.batchnorm._BatchNorm)
        )
        or (user.op == "call_function" and "batch_norm" in operator_name(user))
        for user in node.users
    )
