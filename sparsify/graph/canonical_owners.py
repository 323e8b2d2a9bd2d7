"""Which module of the canonical graph owns which tensor, and where it sits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from sparsify.graph.canonical_lift import Lifted, safe_path
from sparsify.graph.modules import ScaledDotProductAttention

_OWN_TYPES = {
    f"{kind.__module__}.{kind.__qualname__}"
    for kind in (
        nn.Dropout,
        nn.Dropout1d,
        nn.Dropout2d,
        nn.Dropout3d,
        nn.AlphaDropout,
        ScaledDotProductAttention,
    )
}


@dataclass(frozen=True)
class Owned:
    """A module to be placed in the canonical graph.

    Attributes:
        kind: Its class.
        settings: Arguments of the class by name, as sorted pairs.
        tensors: (leaf, path of the source tensor, transposed) for every Parameter and buffer.
    """

    kind: type[nn.Module]
    settings: tuple[tuple[str, Any], ...]
    tensors: tuple[tuple[str, str, bool], ...]


class Owners:
    """Collects modules by path while a graph is raised.

    Two calls share a module when class, settings and tensors agree; a path that is taken otherwise is
    refused.
    """

    def __init__(self, lifted: Lifted) -> None:
        self.lifted = lifted
        self.modules: dict[str, Owned] = {}
        self.aliases = alias_groups(lifted.tensors)
        self._prefixes = {
            ".".join(parts[:n])
            for key in lifted.tensors
            for parts in [key.split(".")]
            for n in range(1, len(parts) + 1)
        }

    def names(self, path: str) -> tuple[str, ...]:
        """All paths under which a tensor is known, the given one first."""
        return (path, *(p for p in self.aliases.get(path, ()) if p != path))

    def parameter(self, node: Any) -> str | None:
        """Path of the Parameter that a node reads, or None."""
        path = self.tensor(node)
        return path if path is not None and isinstance(self.lifted.tensors[path], nn.Parameter) else None

    def tensor(self, node: Any) -> str | None:
        """Path of the Parameter, buffer or constant that a node reads, or None."""
        if isinstance(node, Node) and node.op == "get_attr" and str(node.target) in self.lifted.tensors:
            return str(node.target)
        return None

    def owner_of(self, path: str, node: Node) -> tuple[str, str]:
        """Module path for the tensor at `path` when `node` uses it as its weight, and the path taken there.

        A tensor `a.b.weight` belongs to `a.b`; one with another name, `a.in_proj_weight`, to a module
        named after it, `a.in_proj`. Among tied names that of the module in whose forward the node lies wins.
        """
        inside = stack_path(node)
        weights = [p for p in self.names(path) if p.rpartition(".")[2] == "weight"]
        for name in weights:
            if name.rpartition(".")[0] == inside:
                return inside, name
        if weights:
            name = path if path in weights else weights[0]
            return name.rpartition(".")[0], name
        parent, _, leaf = path.rpartition(".")
        stem = leaf.removesuffix("_weight").removesuffix(".") or leaf
        module = f"{parent}.{stem}" if parent else stem
        if stem != leaf and module in self._prefixes:
            module = path
        return safe_path(module), path

    def beside(self, owner: str, leaf: str, path: str) -> str:
        """The name of a tied tensor that lies in `owner`, else the path itself."""
        return next((p for p in self.names(path) if p == f"{owner}.{leaf}"), path)

    def place(self, path: str, owned: Owned) -> bool:
        """Puts a module at a path.

        Returns:
            False when something else is there.
        """
        return bool(path) and self.modules.setdefault(path, owned) == owned

    def place_free(self, base: str, owned: Owned) -> str:
        """Puts a module without tensors at `base`, or at `base_1`, … where that is taken."""
        attempt, path = 0, safe_path(base)
        while path in self.lifted.tensors or not self.place(path, owned):
            attempt += 1
            path = safe_path(f"{base}_{attempt}")
        return path


def alias_groups(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Paths of each Parameter that is known under more than one, by each of its paths."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for path, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter) and tensor.numel():
            groups[_identity(tensor)].append(path)
    return {path: tuple(paths) for paths in groups.values() if len(paths) > 1 for path in paths}


def _identity(tensor: Tensor) -> Any:
    if tensor.device.type == "meta":
        return id(tensor)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)


def stack_path(node: Node) -> str:
    """Path of the module in whose forward a node was recorded."""
    return _innermost(node)[0]


def path_inside(node: Node, name: str) -> str:
    """Where a module that `node` needs belongs: at the module that made the call, or below it as `name`."""
    return path_below(*_innermost(node), name)


def path_below(path: str, kind: str, name: str) -> str:
    """Where a module belongs that a call needs, given path and class (qualified) of the calling module."""
    path = re.sub(r"[\"'\\\r\n]", "_", path)
    if kind in _OWN_TYPES and path:
        return path
    return f"{path}.{name}" if path else name


def _innermost(node: Node) -> tuple[str, str]:
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    if path.startswith("_empty_nn_module_stack"):
        return "", ""
    if isinstance(kind, type):
        kind = qualified(kind)
    return re.sub(r"@\d+", "", path), kind


def qualified(kind: type) -> str:
    """Name of a class with its module, as torch.export records it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def build(owned: Owned, tensors: Mapping[str, Tensor], made: dict[str, nn.Parameter]) -> nn.Module:
    """Builds a module around existing tensors.

    Args:
        owned: What to build.
        tensors: Tensors by path.
        made: Transposed Parameters that exist already, by the path of their source; extended.
    """
    module = owned.kind(**dict(owned.settings))
    for leaf, path, transposed in owned.tensors:
        tensor = tensors[path]
        if transposed:
            if path not in made:
                made[path] = nn.Parameter(tensor.detach().t(), requires_grad=tensor.requires_grad)
            tensor = made[path]
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            module._parameters[leaf] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
    return module


def meta_settings(tensor: Tensor) -> dict[str, Any]:
    """Keyword arguments that make a module allocate nothing."""
    return {"device": torch.device("meta"), "dtype": tensor.dtype}
