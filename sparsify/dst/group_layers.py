"""Groups of a plain module without a graph: outputs or inputs of single layers, tiles, single weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from sparsify.dst.group_parts import AxisPart, Part, TilePart
from sparsify.dst.groups import Groups, GroupSet
from sparsify.errors import Refusal, UserError

RULE = "groups"
Chosen = Callable[[str], bool]
_TILES = re.compile(r"(\d+)x(\d+)")


def layer_groups(model: nn.Module, kind: str, chosen: Chosen) -> Groups:
    """Outputs (or inputs, for `channels`) of single layers.

    A group is a row of the weight, its bias, and gain and shift of a batch norm that comes right behind it in
    an `nn.Sequential`. The last layer, which makes the outputs, is left alone; for `channels` the first. What
    is tied across layers is not seen, so `narrow` may have to keep some of what becomes zero.

    Args:
        model: Any module.
        kind: `units`, `neurons`, `filters` or `channels`.
        chosen: Whether the layer of this fqn takes part.

    Raises:
        UserError: There are none, or the kind needs a graph.
    """
    if kind not in ("units", "neurons", "filters", "channels"):
        raise UserError(f"{kind} can only be found in a traced model; pass example=, a tuple of inputs")
    layers = [
        (path, layer)
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear | _ConvNd) and not getattr(layer, "transposed", False)
    ]
    columns = kind == "channels"
    sets: list[GroupSet] = []
    parts: list[Part] = []
    for path, layer in layers[1:] if columns else layers[:-1]:
        convolves = isinstance(layer, _ConvNd)
        if not chosen(path) or (kind != "units" and convolves == (kind == "neurons")):
            continue
        if columns and getattr(layer, "groups", 1) > 1:
            continue
        first = sets[-1].first + sets[-1].count if sets else 0
        count = layer.weight.shape[1] if columns else layer.weight.shape[0]
        name = kind if kind != "units" else ("filters" if convolves else "neurons")
        sets.append(GroupSet(f"{path}.weight[{int(columns)}]", name, first, count))
        ids = torch.arange(first, first + count, device=layer.weight.device)
        if columns:
            parts.append(AxisPart(f"{path}.weight", layer, "weight", 1, ids))
        else:
            parts.extend(
                AxisPart(fqn, owner, leaf, 0, ids) for fqn, owner, leaf in _outputs(model, path, layer)
            )
    return Groups(sets, parts)


def _outputs(model: nn.Module, path: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Parameters over the outputs of a layer."""
    owners = [(path, layer)]
    above, _, name = path.rpartition(".")
    parent = model.get_submodule(above)
    if isinstance(parent, nn.Sequential) and name.isdigit() and int(name) + 1 < len(parent):
        behind = parent[int(name) + 1]
        if isinstance(behind, _BatchNorm):
            owners.append((f"{above}.{int(name) + 1}" if above else str(int(name) + 1), behind))
    for prefix, owner in owners:
        for leaf in ("weight", "bias"):
            if owner._parameters.get(leaf) is not None:
                yield f"{prefix}.{leaf}", owner, leaf


def tile_groups(model: nn.Module, kind: str, chosen: Chosen) -> Groups:
    """Blocks of every weight of a linear layer or convolution, or its single weights.

    Args:
        model: Any module.
        kind: `weights`, or `RxC`: R outputs × C inputs at one kernel position, whole tiles only.
        chosen: Whether the layer of this fqn takes part.

    Raises:
        UserError: There are none.
    """
    match = _TILES.fullmatch(kind)
    rows, columns = (int(match[1]), int(match[2])) if match else (1, 1)
    if rows < 1 or columns < 1:
        raise UserError(f"blocks of {kind} are empty; use for instance 4x1")
    sets: list[GroupSet] = []
    parts: list[Part] = []
    refusals = []
    for path, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | _ConvNd) or not chosen(path):
            continue
        reason = _untileable(layer, rows, columns)
        if reason is not None:
            refusals.append(Refusal(path, RULE, reason))
            continue
        first = sets[-1].first + sets[-1].count if sets else 0
        part = TilePart(f"{path}.weight", layer, "weight", rows, columns, first)
        parts.append(part)
        sets.append(GroupSet(part.fqn, kind, first, part.count))
    return Groups(sets, parts, refusals)


def _untileable(layer: nn.Linear | _ConvNd, rows: int, columns: int) -> str | None:
    if getattr(layer, "transposed", False):
        return "transposed convolutions have no rows of outputs"
    outputs, inputs = layer.weight.shape[:2]
    if outputs // getattr(layer, "groups", 1) % rows:
        return f"{outputs} outputs are no multiple of {rows} in every group of the convolution"
    return f"{inputs} inputs are no multiple of {columns}" if inputs % columns else None
