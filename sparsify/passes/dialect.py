"""The form every rewritten graph must have: the canonical dialect of `sparsify.graph`."""

from __future__ import annotations

import torch
import torch.fx
from torch import nn

from sparsify.errors import SparsifyError

_OPERATIONS = ("placeholder", "get_attr", "call_module", "call_function", "output")
_PLAIN_MODULES = ("_operator", "operator", "math", "builtins", "torch", "torch.fx.experimental.sym_node")


def check_dialect(graph: torch.fx.GraphModule) -> None:
    """Checks that a graph is well formed and speaks the canonical dialect.

    Modules own what has parameters; everything else is an ATen overload or plain Python arithmetic.

    Raises:
        SparsifyError: A node is of another kind, or its target does not exist.
    """
    graph.graph.lint()
    modules = dict(graph.named_modules())
    for node in graph.graph.nodes:
        problem = _problem(graph, node, modules)
        if problem:
            raise SparsifyError(f"node '{node.name}': {problem}")


def _problem(graph: torch.fx.GraphModule, node: torch.fx.Node, modules: dict[str, nn.Module]) -> str | None:
    if node.op not in _OPERATIONS:
        return f"operation {node.op} is not of the canonical dialect"
    if node.op == "call_module" and node.target not in modules:
        return f"module {node.target} does not exist"
    if node.op == "get_attr" and not _resolves(graph, str(node.target)):
        return f"attribute {node.target} does not exist"
    if node.op == "call_function" and not isinstance(node.target, torch._ops.OperatorBase):
        origin = getattr(node.target, "__module__", "")
        name = getattr(node.target, "__name__", "")
        if origin not in _PLAIN_MODULES or (origin == "torch" and not name.startswith("sym_")):
            return f"function {node.target} is neither an operator overload nor plain arithmetic"
    return None


def _resolves(graph: nn.Module, path: str) -> bool:
    found: object = graph
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
