"""Which nodes are calls of layers, and which products with parameters are none and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from sparsify.errors import Refusal
from sparsify.graph.canonical_raise import TRANSPOSITIONS
from sparsify.graph.dimensions import CONVOLUTIONS, operator_name

KINDS: dict[type[nn.Module], str] = {
    nn.Linear: "linear",
    nn.Conv1d: "conv1d",
    nn.Conv2d: "conv2d",
    nn.Conv3d: "conv3d",
    nn.ConvTranspose1d: "conv_transpose1d",
    nn.ConvTranspose2d: "conv_transpose2d",
    nn.ConvTranspose3d: "conv_transpose3d",
    nn.Embedding: "embedding",
    nn.EmbeddingBag: "embedding",
}
"""Kind of layer by class."""
FUNCTION_KINDS = {name: name for name in ("linear", *CONVOLUTIONS) if name != "convolution"}
"""Kind of layer by ATen name, for those whose weight is read from the graph."""
_MATRIX_PRODUCTS = frozenset({"linear", "matmul", "mm", "mv", "addmm"})
_PRODUCTS = _MATRIX_PRODUCTS | frozenset({"bmm", "baddbmm", "einsum", *CONVOLUTIONS})


@dataclass(frozen=True)
class Layer:
    """Calls of one layer.

    Attributes:
        fqn: Its path, different for each.
        kind: As in ``LayerFacts``.
        weight: Path of the weight parameter.
        functional: Whether an operator of the graph reads the weight, not a module of its own.
        nodes: Its calls in order.
    """

    fqn: str
    kind: str
    weight: str
    functional: bool
    nodes: tuple[Node, ...]


def layers_of(module: GraphModule) -> list[Layer]:
    """The layers of a canonical graph, in execution order.

    A matrix product that reads the weight of another layer, perhaps transposed, is a layer of its own with a
    tied weight; so is a functional call beside a module that has the same weight.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    calls: dict[tuple[str, str], list[Node]] = {}
    for node in module.graph.nodes:
        weight = _weight(module, node)
        if weight in parameters:
            owner = str(node.target) if node.op == "call_module" else ""
            calls.setdefault((owner, str(weight)), []).append(node)
    known = {id(parameters[weight]) for _, weight in calls}
    counted = {node for nodes in calls.values() for node in nodes}
    for node in module.graph.nodes:
        weight = None if node in counted else _multiplied(node)
        if weight in parameters and id(parameters[weight]) in known:
            calls[f":{node.name}", weight] = [node]
    position = {node: index for index, node in enumerate(module.graph.nodes)}
    found: dict[str, Layer] = {}
    for (owner, weight), nodes in sorted(calls.items(), key=lambda item: position[item[1][0]]):
        functional = nodes[0].op != "call_module"
        fqn = _free_name(owner, weight, nodes[0], found) if functional else owner
        found[fqn] = Layer(fqn, _kind(module, nodes[0]), weight, functional, tuple(nodes))
    return list(found.values())


def products_besides(module: GraphModule, layers: list[Layer], data: frozenset[Node]) -> list[Refusal]:
    """Products of activations with parameters that are no layer: weights computed or joined in the graph.

    Args:
        module: Canonical graph module.
        layers: Its layers.
        data: Nodes whose values depend on the model's inputs.
    """
    counted = {node for layer in layers for node in layer.nodes}
    sources: dict[Node, tuple[str, ...]] = {}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found: dict[str, Refusal] = {}
    for node in module.graph.nodes:
        if node not in data:
            own = (str(node.target),) if node.op == "get_attr" and str(node.target) in parameters else ()
            read = (path for source in node.all_input_nodes for path in sources.get(source, ()))
            sources[node] = tuple(dict.fromkeys((*own, *read)))
        elif node.op == "call_function" and operator_name(node) in _PRODUCTS and node not in counted:
            for operand in _operands(node):
                matrices = [path for path in sources.get(operand, ()) if parameters[path].ndim > 1]
                if operand not in data and matrices:
                    _refuse(node, operand, matrices[0], found)
    return list(found.values())


def _refuse(node: Node, operand: Node, weight: str, found: dict[str, Refusal]) -> None:
    owner, _, leaf = weight.rpartition(".")
    fqn = owner if leaf == "weight" else weight
    if operand.op == "get_attr":
        reason = f"{operator_name(node)} multiplies by the parameter {weight}, which makes no linear layer"
    else:
        reason = (
            f"its weight is computed in the graph ({operator_name(operand)} of {weight}), so that zeros in "
            "the parameter need not be zeros in the product"
        )
    found.setdefault(fqn, Refusal(fqn, "computed-weight", f"{reason}; it stays dense"))


def _operands(node: Node) -> list[Node]:
    """Factors of a product, without what is added."""
    name, given = operator_name(node), list(node.args)
    if name == "einsum":
        given = list(node.args[1])  # type: ignore[arg-type]
    elif name in {"addmm", "baddbmm"}:
        given = given[1:3]
    return [argument for argument in given[:2] if isinstance(argument, Node)]


def _weight(module: GraphModule, node: Node) -> str | None:
    if node.op == "call_module":
        return f"{node.target}.weight" if type(module.get_submodule(str(node.target))) in KINDS else None
    if node.op == "call_function" and operator_name(node) in FUNCTION_KINDS and len(node.args) > 1:
        source = node.args[1]
        if isinstance(source, Node) and source.op == "get_attr":
            return str(source.target)
    return None


def _multiplied(node: Node) -> str | None:
    """The parameter that a matrix product reads, perhaps transposed."""
    if node.op != "call_function" or operator_name(node) not in _MATRIX_PRODUCTS:
        return None
    for operand in _operands(node):
        source = operand.args[0] if operand.target in TRANSPOSITIONS else operand
        if isinstance(source, Node) and source.op == "get_attr":
            return str(source.target)
    return None


def _kind(module: GraphModule, node: Node) -> str:
    if node.op == "call_module":
        return KINDS[type(module.get_submodule(str(node.target)))]
    return FUNCTION_KINDS.get(operator_name(node), "linear")


def _free_name(owner: str, weight: str, node: Node, taken: dict[str, Layer]) -> str:
    names = [] if owner else [weight.rpartition(".")[0]]
    return next(name for name in (*names, weight, f"{weight}:{node.name}") if name and name not in taken)
