"""The canonical form: what an exported program becomes before anything else looks at it.

`call_module` for what owns parameters or differs in training mode, ATen `call_function` for the rest,
`get_attr` for other parameters and buffers. docs/design/canonical-form.md says exactly what is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule

from sparsify.errors import UnsupportedModelError
from sparsify.graph.canonical_clean import (
    drop_checks,
    drop_no_ops,
    functionalise,
    replace,
    same_shape,
    same_size,
    sweep,
    value,
)
from sparsify.graph.canonical_lift import Lifted, inline_regions, lift
from sparsify.graph.canonical_owners import Owners, alias_groups, build
from sparsify.graph.canonical_raise import raise_modules
from sparsify.graph.traced import KeySource

aten = torch.ops.aten

_RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class Canonical:
    """A graph in canonical form, with the fields of `Traced` that follow from it."""

    module: GraphModule
    key_map: Mapping[str, KeySource]
    ties: tuple[tuple[str, ...], ...]


def canonicalise(ep: ExportedProgram, *, train_record: Mapping[str, Any] | None = None) -> Canonical:
    """Brings an exported program into canonical form.

    Args:
        ep: Program from torch.export, decomposed or not; its tensors are used, not copied.
        train_record: Module path to what training mode changes there, as `train_mode.train_record` gives it.

    Raises:
        UnsupportedModelError: When the program does what the form cannot say, with the node.
    """
    lifted = _flat(ep)
    if not functionalise(lifted):
        lifted = _flat(ep.run_decompositions({}))
        if not functionalise(lifted):
            raise UnsupportedModelError(
                "the model writes in place through a view, and torch could not rewrite it; use torch.where, "
                "torch.cat or index_put instead of assigning to a slice"
            )
    _share_ties(lifted)
    owners = Owners(lifted)
    raise_modules(owners, train_record or {})
    sweep(lifted.graph)
    _unwrap_linears(lifted.graph, owners)
    _simplify_views(lifted.graph)
    sweep(lifted.graph)
    return _assemble(lifted, owners)


def _flat(ep: ExportedProgram) -> Lifted:
    lifted = lift(ep)
    inline_regions(lifted)
    drop_checks(lifted)
    drop_no_ops(lifted)
    sweep(lifted.graph)
    return lifted


def _share_ties(lifted: Lifted) -> None:
    """Makes tied paths hold one Parameter object, as they did before they were stored."""
    for path, group in alias_groups(lifted.tensors).items():
        lifted.tensors[path] = lifted.tensors[group[0]]


def _unwrap_linears(graph: Graph, owners: Owners) -> None:
    """view → Linear → view becomes Linear where the views only fold and unfold the leading dimensions."""
    for node in list(graph.nodes):
        owned = owners.modules.get(str(node.target)) if node.op == "call_module" else None
        if owned is None or owned.kind is not nn.Linear:
            continue
        folded = node.args[0]
        if folded.target not in _RESHAPES:
            continue
        x = folded.args[0]
        shape = value(x).shape
        unfolded = list(node.users)
        if not unfolded or not same_size(shape[-1], value(folded).shape[-1]):
            continue
        if all(
            u.target in _RESHAPES and _keeps(value(u).shape, shape, value(node).shape[-1]) for u in unfolded
        ):
            node.args = (x,)
            node.meta["val"] = value(unfolded[0])
            for user in unfolded:
                replace(user, node)


def _keeps(after: Any, before: Any, width: int) -> bool:
    return same_shape(after[:-1], before[:-1]) and same_size(after[-1], width)


def _simplify_views(graph: Graph) -> None:
    """Makes views reshapes, since layouts differ between modes and machines; drops those to the own shape."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _RESHAPES:
            node.target = aten.reshape.default
            before, after = value(node.args[0]), value(node)
            if isinstance(before, Tensor) and same_shape(before.shape, after.shape):
                replace(node, node.args[0])


def _assemble(lifted: Lifted, owners: Owners) -> Canonical:
    """Builds the modules under one root and the map of state_dict keys."""
    root = nn.Module()
    called = {str(n.target) for n in lifted.graph.nodes if n.op == "call_module"}
    read = {str(n.target) for n in lifted.graph.nodes if n.op == "get_attr"}
    placed = {path: owned for path, owned in owners.modules.items() if path in called}
    transposes: dict[str, nn.Parameter] = {}
    for path in sorted(placed, key=lambda p: p.count(".")):
        _attach(root, path, build(placed[path], lifted.tensors, transposes))
    sources = {
        f"{path}.{leaf}": KeySource(lifted.renamed.get(source, source), transposed)
        for path, owned in placed.items()
        for leaf, source, transposed in owned.tensors
    }
    moved = {source for owned in placed.values() for _, source, _ in owned.tensors}
    for path, tensor in lifted.tensors.items():
        persistent = path in lifted.persistent
        if path in sources or (path not in read and (path in moved or not persistent)):
            continue
        _register(root, path, tensor, persistent)
        sources[path] = KeySource(lifted.renamed.get(path, path))
    module = GraphModule(root, lifted.graph)
    complete(module, root)
    keys = module.state_dict()
    return Canonical(module, {key: sources[key] for key in keys}, ties_of(module))


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    _container(root, parent)._modules[leaf] = module


def _register(root: nn.Module, path: str, tensor: Tensor, persistent: bool) -> None:
    parent, _, leaf = path.rpartition(".")
    owner = _container(root, parent)
    if isinstance(tensor, nn.Parameter):
        owner._parameters[leaf] = tensor
    else:
        owner.register_buffer(leaf, tensor, persistent=persistent)


def _container(root: nn.Module, path: str) -> nn.Module:
    for part in path.split(".") if path else []:
        if part not in root._modules:
            root._modules[part] = nn.Module()
        root = root._modules[part]  # type: ignore[assignment]
    return root


def complete(module: GraphModule, root: nn.Module) -> None:
    """Gives a GraphModule what its graph does not read, so that no state_dict key is lost."""
    module._modules.update(root._modules)
    module._parameters.update(root._parameters)
    for name, buffer in root._buffers.items():
        module.register_buffer(name, buffer, persistent=name not in root._non_persistent_buffers_set)


def ties_of(module: nn.Module) -> tuple[tuple[str, ...], ...]:
    """Groups of state_dict keys that share one Parameter."""
    groups: dict[int, list[str]] = {}
    for key, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(key)
    return tuple(tuple(keys) for keys in groups.values() if len(keys) > 1)
