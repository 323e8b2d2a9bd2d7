"""Merging for inference: what is one matrix becomes one layer again.

    Σ_j θ_j            → one layer          (linear branches)
    c·Σ_j BN_j(θ_j x)  → one layer          (branches that end in a batch normalisation; its statistics fixed)
    Vᵀ(Uᵀx)            → one layer          (factors with nothing between)
    Vᵀ(Uᵀx) + θᵀx      → one layer          (doped)

A merged layer has the shape of the layer that the user's model had. Branches are always merged: no weight of
the sum is counted twice. Products are merged where the matrix has no more multiplications than the kept
weights of its parts. At equal FLOPs the two are the same number, and then one dense layer is the better one:
as many numbers to read and no indices, one pass over the activations in place of three, and a dense product
runs closer to the peak of a machine than a sparse one. Branches and factors with an activation stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from sparsify.errors import UserError
from sparsify.graph.verify import propagate
from sparsify.masks.module import SparseGraphModule
from sparsify.passes.building import merged_layer
from sparsify.passes.contract import mark
from sparsify.passes.record import Record
from sparsify.passes.wide import rebuilt
from sparsify.planning.schema import PlanLayer

aten = torch.ops.aten
NAME = "merge"
_PARTS = ("branches", "norms", "u", "v", "sparse")


def merge(model: SparseGraphModule) -> SparseGraphModule:
    """Merges the linear parts of a model for inference.

    Args:
        model: A transformed or loaded model in evaluation mode.

    Returns:
        A model that computes the same up to rounding, in evaluation mode and for inference only: its record
        has no plan and no scaling to train by. It shares every tensor that is not merged with `model`, which
        stays as it was; and is `model` itself where there is nothing to merge.

    Raises:
        UserError: The model is in training mode, in which a batch normalisation is no fixed matrix.
    """
    plan = model.sparsify.plan
    candidates = [layer for layer in plan.layers if _candidate(layer)] if plan is not None else []
    if not candidates:
        return model
    if model.training:
        raise UserError("merging is for inference: call eval() on the model first")
    result = rebuilt(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    calls = _calls(result)
    merged = [layer.fqn for layer in candidates if _merge_layer(result, layer, calls)]
    if not merged:
        return model
    result.recompile()
    propagate(result)
    result.sparsify = _record(model.sparsify, set(result.state_dict()))
    return result


@dataclass(frozen=True)
class _Call:
    """One call of a layer's parts.

    Attributes:
        source: What the parts are called on.
        nodes: The nodes that merging makes superfluous, in order; the last one is the result.
        factor: Number that the sum is multiplied by.
    """

    source: Node
    nodes: tuple[Node, ...]
    factor: float


def _candidate(layer: PlanLayer) -> bool:
    if layer.family == "parallel":
        return layer.nonlinearity in ("none", "norm", "follows")
    return layer.family == "doped" or (layer.family == "factorized" and layer.nonlinearity == "none")


def _merge_layer(graph: GraphModule, layer: PlanLayer, calls: Mapping[str, list[Node]]) -> bool:
    """Merges one layer; returns whether it was possible."""
    path = _container(layer)
    root = graph.get_submodule(path)
    if layer.family == "parallel":
        if not _fixed(root):
            return False
        found = [_sum(node, path, layer.branches, graph) for node in calls.get(f"{path}.branches.0", [])]
    elif _kept(root) < prod(layer.shape):
        return False
    elif layer.family == "doped":
        found = [_doped(node, path) for node in calls.get(f"{path}.sparse", [])]
    else:
        found = [_product(node, path) for node in calls.get(f"{path}.u", [])]
    matched = [call for call in found if call is not None]
    if not matched or len(matched) < len(found) or len({call.factor for call in matched}) > 1:
        return False
    merged = _layer(root, layer.family, matched[0].factor)
    merged._modules.update({name: one for name, one in root._modules.items() if name not in _PARTS})
    parent, _, leaf = path.rpartition(".")
    graph.get_submodule(parent)._modules[leaf] = merged
    for call in matched:
        _replace(graph, path, call)
    return True


def _container(layer: PlanLayer) -> str:
    first = layer.tensors[0]
    return first.fqn.removesuffix(".weight").removesuffix(".branches.0" if first.part == "branch" else ".u")


def _fixed(root: nn.Module) -> bool:
    """Whether all normalisations of the branches are fixed affine maps in evaluation mode."""
    norms = root._modules.get("norms")
    return norms is None or all(
        isinstance(norm, _BatchNorm) and norm.running_mean is not None for norm in norms.children()
    )


def _kept(root: nn.Module) -> int:
    """Multiplications of the parts at one position: kept weights, counted from the masks."""
    parts = [root.get_submodule(name) for name in ("u", "v", "sparse") if name in root._modules]
    masks = [part._buffers.get("weight_mask") for part in parts]
    return sum(
        part.get_parameter("weight").numel() if mask is None else int(torch.count_nonzero(mask))
        for part, mask in zip(parts, masks, strict=True)
    )


def _sum(first: Node, path: str, branches: int, graph: GraphModule) -> _Call | None:
    """Matches c·Σ_j norm_j(branch_j(x)) from its first branch on."""
    source = first.args[0]
    nodes = _term(first, path, 0)
    total = nodes[-1]
    for index in range(1, branches):
        add = _only_user(total)
        if add is None or add.target != aten.add.Tensor or len(add.args) != 2 or add.kwargs:
            return None
        start = next((node for node in _users(source) if node.target == f"{path}.branches.{index}"), None)
        term = _term(start, path, index) if start is not None else []
        if not term or set(add.args) != {total, term[-1]} or _only_user(term[-1]) is not add:
            return None
        nodes, total = [*nodes, *term, add], add
    scaled = _only_user(total)
    if scaled is not None and scaled.target == aten.mul.Tensor and isinstance(scaled.args[1], float):
        return _Call(cast(Node, source), (*nodes, scaled), scaled.args[1])
    return _Call(cast(Node, source), tuple(nodes), 1.0)


def _term(node: Node, path: str, index: int) -> list[Node]:
    user = _only_user(node)
    return [node, user] if user is not None and user.target == f"{path}.norms.{index}" else [node]


def _product(u: Node, path: str) -> _Call | None:
    """Matches V(U(x))."""
    v = _only_user(u)
    return _Call(cast(Node, u.args[0]), (u, v), 1.0) if v is not None and v.target == f"{path}.v" else None


def _doped(sparse: Node, path: str) -> _Call | None:
    """Matches V(U(c·x)) + S(c·x)."""
    source = cast(Node, sparse.args[0])
    add = _only_user(sparse)
    u = next((node for node in source.users if node.target == f"{path}.u"), None)
    product = _product(u, path) if u is not None else None
    if add is None or product is None or add.target != aten.add.Tensor or add.kwargs:
        return None
    if set(add.args) != {product.nodes[-1], sparse} or _only_user(product.nodes[-1]) is not add:
        return None
    nodes = (*product.nodes, sparse, add)
    if source.target == aten.mul.Tensor and isinstance(source.args[1], float) and len(source.users) == 2:
        return _Call(cast(Node, source.args[0]), (source, *nodes), source.args[1])
    return _Call(source, nodes, 1.0)


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _users(value: Any) -> list[Node]:
    return list(value.users) if isinstance(value, Node) else []


@torch.no_grad()
def _layer(root: nn.Module, family: str, factor: float) -> nn.Module:
    """The merged layer, computed in double precision."""
    if family == "parallel":
        branches, norms = _children(root, "branches"), _children(root, "norms")
        weight, bias = _summed(branches, norms, factor)
        return _filled(branches[0], weight, bias)
    u, v = root.get_submodule("u"), root.get_submodule("v")
    product = multiply(v.get_parameter("weight").double(), u.get_parameter("weight").double())
    if family == "factorized":
        return _filled(u, product, v._parameters.get("bias"))
    sparse = root.get_submodule("sparse")
    weight = (product + sparse.get_parameter("weight").double()) * factor
    return _filled(sparse, weight, sparse._parameters.get("bias"))


def multiply(v: Tensor, u: Tensor) -> Tensor:
    """The weight of V∘U: V is [out, rank / groups, 1, …], U is [rank, in / groups, *kernel]."""
    groups = u.shape[0] // v.shape[1]
    inner = u.reshape(groups, v.shape[1], -1)
    outer = v.reshape(groups, v.shape[0] // groups, v.shape[1])
    return torch.bmm(outer, inner).reshape(v.shape[0], *u.shape[1:])


def _children(root: nn.Module, name: str) -> list[nn.Module]:
    found = root._modules.get(name)
    return [] if found is None else list(found.children())


def _summed(
    branches: Sequence[nn.Module], norms: Sequence[nn.Module], factor: float
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of factor · Σ_j norm_j(branch_j)."""
    weight = torch.zeros_like(branches[0].get_parameter("weight"), dtype=torch.float64)
    bias = weight.new_zeros(weight.shape[0])
    for index, one in enumerate(branches):
        own, shift = one.get_parameter("weight").double(), one._parameters.get("bias")
        constant = torch.zeros_like(bias) if shift is None else shift.double()
        if norms:
            gain, offset = _affine(norms[index])
            own = own * gain.reshape(-1, *(1 for _ in own.shape[1:]))
            constant = constant * gain + offset
        weight += factor * own
        bias += factor * constant
    return weight, bias if norms or branches[0]._parameters.get("bias") is not None else None


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch normalisation with fixed statistics as x ↦ gain·x + offset: γ/√(v+ε) and β − μ·gain."""
    mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    gain = (variance + norm.eps).rsqrt()  # type: ignore[operator]
    weight, shift = norm._parameters.get("weight"), norm._parameters.get("bias")
    gain = gain if weight is None else gain * weight.double()
    return gain, (0 if shift is None else shift.double()) - mean * gain


def _filled(like: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    made = merged_layer(like, weight.shape[0], bias=bias is not None)
    made.get_parameter("weight").copy_(weight)
    if bias is not None:
        made.get_parameter("bias").copy_(bias)
    return made.eval()


def _replace(graph: GraphModule, path: str, call: _Call) -> None:
    end = call.nodes[-1]
    with graph.graph.inserting_before(end):
        made = graph.graph.call_module(path, (call.source,))
    made.meta["nn_module_stack"] = call.nodes[0].meta.get("nn_module_stack", {})
    mark(made, NAME, call.nodes[0].name)
    end.replace_all_uses_with(made)
    for node in reversed(call.nodes):
        graph.graph.erase_node(node)


def _calls(graph: GraphModule) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            found.setdefault(str(node.target), []).append(node)
    return found


def _record(record: Record, keys: set[str]) -> Record:
    """What stays true of a merged model: its inputs, and where the tensors that are left came from."""
    return replace(
        record,
        plan=None,
        scaling=None,
        parameter_map=tuple(entry for entry in record.parameter_map if entry.new in keys),
        key_map={key: source for key, source in record.key_map.items() if key in keys},
    )
