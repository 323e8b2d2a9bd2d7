"""Reads a dense model's tensors back out of a rewritten one, and says how far the two are apart."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from sparsify.errors import UserError
from sparsify.graph.traced import Traced
from sparsify.graph.two_widths import example_inputs
from sparsify.masks.state import masked_parameters
from sparsify.passes.dense import corner, others
from sparsify.passes.gains import norm_gains
from sparsify.passes.parts import DROP_INS
from sparsify.passes.preserve import Sheet
from sparsify.passes.preserve_parts import bias_names, merged


def recover(graph: nn.Module, sheet: Sheet, name: str) -> Tensor:
    """The dense tensor of this name that the rewritten model computes with; old units only.

    Args:
        graph: The rewritten model.
        sheet: What is where.
        name: Name of the tensor in the traced dense model.
    """
    for layer in sheet.plan.layers:
        if layer.family in DROP_INS:
            names = [new for new in bias_names(graph, layer) if sheet.sources.get(new) == name]
            if layer.weight == name:
                last = layer.tensors[-1].fqn
                return merged(graph, layer, sheet.forward(graph, last) if layer.family == "doped" else 1.0)
            if names:
                return torch.stack([graph.get_parameter(new).detach() for new in names]).sum(0)
    tensor = _tensor(graph, name)
    known = sheet.dense[name]
    places = known.places(sheet.plan)
    found = tensor if all(place is None for place in places) else tensor[corner(places, known.shape)]
    if tensor.numel() != found.numel() and name in norm_gains(graph):
        return found * sqrt(tensor.numel() / found.numel())
    forward = sheet.forward(graph, name)
    return found * forward if forward != 1.0 else found


def check_defined(graph: nn.Module, sheet: Sheet) -> None:
    """Checks that a dense model of the old shapes exists that computes the same.

    Raises:
        UserError: A layer has a nonlinearity inside, a new unit feeds an old one, or a norm reduces over new
            units; the message names it.
    """
    for layer in sheet.plan.layers:
        if layer.family in ("parallel", "factorized") and layer.nonlinearity != "none":
            raise UserError(
                f"no dense weight computes what layer {layer.fqn!r} does: it is {layer.family} with a "
                f"nonlinearity inside ({layer.nonlinearity})"
            )
    gains = norm_gains(graph)
    for name, known in sheet.dense.items():
        places = known.places(sheet.plan)
        if all(place is None for place in places):
            continue
        if name in gains:
            raise UserError(
                "no dense model of the old widths computes the same: the norm at "
                f"{name.rpartition('.')[0]!r} reduces over units that are new"
            )
        if len(places) > 1 and places[1] is not None and _new_inputs_used(graph, known.name, places):
            raise UserError(
                f"no dense model of the old widths computes the same: in layer {name.rpartition('.')[0]!r} "
                "units that are new feed old ones (they have been trained, or were drawn from scratch)"
            )


def _new_inputs_used(graph: nn.Module, name: str, places: tuple[Tensor | None, ...]) -> bool:
    tensor = _tensor(graph, name)
    columns = others(places[1], tensor.shape[1])
    rows = torch.arange(tensor.shape[0]) if places[0] is None else places[0]
    return bool(torch.count_nonzero(tensor[rows][:, columns]))


def _tensor(graph: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    owner = graph.get_submodule(path)
    found = owner._parameters.get(leaf)
    tensor = owner._buffers.get(leaf) if found is None else found
    if tensor is None:
        raise UserError(f"the model has no tensor {name!r} any more; was its graph changed?")
    return tensor.detach()


@torch.no_grad()
def report(traced: Traced, graph: GraphModule, source: Mapping[str, Tensor], sheet: Sheet) -> dict[str, Any]:
    """How far a model that kept its weights starts from the dense one.

    Args:
        traced: The dense model.
        graph: The rewritten model, complete.
        source: Tensors of the dense model by name.
        sheet: What is where.

    Returns:
        `outputs`: largest absolute difference and relative norm of the difference on the example inputs
        (random numbers in place of real ones that are all equal), None on the meta device. `layers`: for each
        rewritten layer ‖W−Ŵ‖/‖W‖ and the share of weights kept as they are, None where they are products.
        `cut_off`: units without any input or output. `new_connections` and `seed` as asked for.
    """
    layers = layer_errors(graph, source, sheet)
    return {
        "new_connections": sheet.new_connections,
        "seed": sheet.seed,
        "cut_off": cut_off(graph, sheet),
        "outputs": _outputs(traced, graph),
        "layers": layers,
    }


@torch.no_grad()
def layer_errors(graph: nn.Module, source: Mapping[str, Tensor], sheet: Sheet) -> list[dict[str, Any]]:
    """Error and kept share of every rewritten layer, one tensor at a time."""
    masks = {id(entry.param): entry.mask for entry in masked_parameters(graph).values()}
    found = []
    for layer in sheet.plan.layers:
        if not layer.masked or source[layer.weight].is_meta:
            continue
        old = source[layer.weight]
        scale = float(old.norm())
        difference = float((recover(graph, sheet, layer.weight) - old).norm())
        kept: float | None = None
        if layer.family == "parallel":
            kept = min(1.0, sum(tensor.nnz for tensor in layer.tensors) / old.numel())
        elif layer.family not in DROP_INS:
            mask = masks[id(graph.get_parameter(layer.weight))]
            places = sheet.dense[layer.weight].places(sheet.plan)
            grown = any(place is not None for place in places)
            inside = mask[corner(places, tuple(old.shape))] if grown else mask
            kept = int(torch.count_nonzero(inside)) / old.numel()
        error = difference / scale if scale else difference
        found.append({"fqn": layer.fqn, "relative_error": error, "kept": kept})
    return found


@torch.no_grad()
def cut_off(graph: nn.Module, sheet: Sheet) -> int:
    """New units of rewritten layers that have no active weight: rows and columns of masks, inner units."""
    masks = {name: entry.mask for name, entry in masked_parameters(graph).items()}
    total = 0
    for layer in sheet.plan.layers:
        if layer.family == "factorized":
            u, v = (masks.get(tensor.fqn) for tensor in layer.tensors)
            if u is not None and v is not None and v.shape[1] == u.shape[0]:
                unread = ~v.transpose(0, 1).flatten(1).any(1)
                total += int((unread & ~u.flatten(1).any(1)).sum())
        elif layer.weight in masks and layer.weight in sheet.dense:
            mask = masks[layer.weight]
            if mask.is_meta:
                continue
            places = sheet.dense[layer.weight].places(sheet.plan)
            for axis in (0, 1):
                if places[axis] is not None:
                    lines = mask.transpose(0, axis).flatten(1).any(1)
                    total += int((~lines[others(places[axis], mask.shape[axis])]).sum())
    return total


def _outputs(traced: Traced, graph: GraphModule) -> dict[str, float] | None:
    tensors = [*traced.module.parameters(), *traced.module.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        return None
    args, kwargs = _inputs(traced)
    wanted = _leaves(_evaluated(traced.module, args, kwargs))
    found = _leaves(_evaluated(graph, args, kwargs))
    largest, square, scale = 0.0, 0.0, 0.0
    for one, other in zip(wanted, found, strict=True):
        difference = (other.double() - one.double()).abs()
        largest = max(largest, float(difference.max()) if difference.numel() else 0.0)
        square += float(difference.square().sum())
        scale += float(one.double().square().sum())
    return {"max_abs": largest, "relative": sqrt(square / scale) if scale else sqrt(square)}


def _evaluated(module: GraphModule, args: Any, kwargs: Any) -> Any:
    before = {child: child.training for child in module.modules()}
    module.eval()
    try:
        return module(*copy.deepcopy(args), **copy.deepcopy(kwargs))
    finally:
        for child, training in before.items():
            child.training = training


def _inputs(traced: Traced) -> Any:
    """The example inputs; where all numbers are equal, random ones: normal, or rows of a table they index."""
    random = torch.Generator().manual_seed(0)
    rows = {id(example): _table_rows(traced.module, node) for node, example in example_inputs(traced)}

    def filled(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel() or bool((leaf != leaf.reshape(-1)[0]).any()):
            return leaf
        if leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=random).to(leaf)
        count = rows.get(id(leaf))
        return leaf if count is None else torch.randint(count, leaf.shape, generator=random).to(leaf)

    return pytree.tree_map(filled, (traced.args, traced.kwargs))


def _table_rows(module: GraphModule, node: Node) -> int | None:
    """Rows of the smallest table that an input is looked up in, directly."""
    tables = [
        module.get_submodule(str(user.target))
        for user in node.users
        if user.op == "call_module" and user.args and user.args[0] is node
    ]
    return min((table.num_embeddings for table in tables if isinstance(table, nn.Embedding)), default=None)


def _leaves(output: Any) -> list[Tensor]:
    found = pytree.tree_leaves(output)
    return [leaf for leaf in found if isinstance(leaf, Tensor) and leaf.is_floating_point()]
