"""Which units are dead: everything that reads them reads zeros, or a constant that its bias can take over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from sparsify.graph.channel_rules import reduced_axes
from sparsify.graph.channels import Channels
from sparsify.graph.constant_rules import is_padded, per_group
from sparsify.graph.constants import Constants, Known
from sparsify.graph.dimensions import CONVOLUTIONS, Call, operator_name
from sparsify.graph.units import Units, is_gone


@dataclass(frozen=True)
class Reader:
    """A layer that sums over channels.

    Attributes:
        path: Path of the module whose bias can take over constants; None for one that has no such module.
        touches: Bool [out, in/groups]: whether an output reads an input of its group at all.
        rows: Unit of each output; -1 where it stays.
        columns: Unit of each input [in].
        known: Constants among the inputs that may be taken over [in].
        groups: Groups of a convolution.
    """

    path: str | None
    touches: Tensor
    rows: Tensor
    columns: Tensor
    known: Known
    groups: int

    def needed(self, removed: Tensor) -> Tensor:
        """Units that the remaining outputs read and that are no constants.

        Args:
            removed: Bool, one entry a unit.
        """
        rows = self.touches & ~is_gone(self.rows, removed)[:, None]
        read = rows.view(self.groups, -1, rows.shape[1]).any(1).flatten()
        needed: Tensor = torch.unique(self.columns[read & ~self.known.mask])
        return needed[needed >= 0]


def readers(channels: Channels, known: Constants, units: Units) -> list[Reader]:
    """Every layer and sum that reads channels which may be taken away.

    Args:
        channels: Channels of the model.
        known: Its constants.
        units: Its units.
    """
    unit_of = _by_root(channels, units)
    biases = Counter(id(p) for n, p in channels.module.named_parameters(remove_duplicate=False))
    found = []
    for node in channels.module.graph.nodes:
        for reader in _readers_of(node, channels, known, unit_of):
            if bool((reader.columns >= 0).any()):
                found.append(reader)
    return _agreeing(found, channels.module, biases)


def dead_units(units: Units, found: Sequence[Reader]) -> Tensor:
    """Units that may go without changing what the model computes; one of each group stays.

    Args:
        units: All units.
        found: What reads them.

    Returns:
        Bool, one entry a unit.
    """
    removed = torch.zeros(len(units.units), dtype=torch.bool)
    members: dict[str, list[int]] = {}
    for place, unit in enumerate(units.units):
        members.setdefault(unit.group, []).append(place)
    groups = [torch.tensor(places) for places in members.values()]
    while True:
        needed = torch.zeros(len(units.units), dtype=torch.bool)
        for reader in found:
            needed[reader.needed(removed)] = True
        candidates = ~needed
        for places in groups:
            if bool(candidates[places].all()):
                kept = places[~removed[places]][:1]
                candidates[kept] = False
        if torch.equal(candidates | removed, removed):
            return removed
        removed |= candidates


def _by_root(channels: Channels, units: Units) -> dict[int, int]:
    found = {}
    for (name, axis), places in units.places.items():
        atoms = channels.tensor(name)[axis]
        for root, unit in zip(channels.roots(atoms), places.tolist(), strict=True):
            if unit >= 0:
                found[root] = unit
    return found


def _units_at(atoms: Tensor | None, size: int, channels: Channels, unit_of: Mapping[int, int]) -> Tensor:
    if atoms is None:
        return torch.full((size,), -1)
    return torch.tensor([unit_of.get(root, -1) for root in channels.roots(atoms)])


def _readers_of(
    node: Node, channels: Channels, known: Constants, unit_of: Mapping[int, int]
) -> Iterator[Reader]:
    name = operator_name(node)
    if node.op == "call_module":
        module = channels.module.get_submodule(str(node.target))
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            path = str(node.target)
            padded = not isinstance(module, nn.Linear) and is_padded(module)
            groups = getattr(module, "groups", 1)
            weight, labels = module.weight, channels.tensor(f"{path}.weight").get(0)
            if getattr(module, "transposed", False):
                weight, labels, padded = (
                    weight.transpose(0, 1),
                    channels.tensor(f"{path}.weight").get(1),
                    True,
                )
            yield from _layer(node, path, weight, labels, int(groups), padded, channels, known, unit_of)
    elif name in ("linear", *CONVOLUTIONS) and isinstance(node.args[1], Node):
        yield from _functional(node, channels, known, unit_of)
    elif name == "sum":
        source: Any = node.args[0]
        for axis in reduced_axes(node, len(channels.extents.shape(source))):
            if axis in channels.of(source):
                yield _sum(source, axis, channels, known, unit_of)


def _layer(
    node: Node,
    path: str | None,
    weight: Tensor,
    outputs: Tensor | None,
    groups: int,
    padded: bool,
    channels: Channels,
    known: Constants,
    unit_of: Mapping[int, int],
) -> Iterator[Reader]:
    source: Any = node.args[0]
    axis = len(channels.extents.shape(source)) - max(1, weight.ndim - 1)
    labels = channels.of(source).get(axis)
    if labels is None or (groups > 1 and groups == labels.numel() and weight.shape[1] == 1):
        return
    given = known.channel(source, axis)
    foldable = given.mask & torch.isfinite(given.value)
    if padded or path is None:
        foldable = foldable & (given.value == 0)
    yield Reader(
        path,
        (weight.detach() != 0).flatten(2).any(2) if weight.ndim > 2 else weight.detach() != 0,
        _units_at(outputs, weight.shape[0], channels, unit_of),
        _units_at(labels, labels.numel(), channels, unit_of),
        given.where(foldable),
        groups,
    )


def _functional(
    node: Node, channels: Channels, known: Constants, unit_of: Mapping[int, int]
) -> Iterator[Reader]:
    """A layer whose weight is an operand: it has no module whose bias could take over constants."""
    call = Call.of(node)
    weight = known.of(call["weight"])
    shape = channels.extents.shape(call["weight"])
    value = weight.value.masked_fill(~weight.mask, 1).expand(shape)
    groups = call["groups"] if "groups" in call.values else 1
    labels = channels.of(call["weight"])
    yield from _layer(node, None, value, labels.get(0), int(groups), True, channels, known, unit_of)


def _sum(source: Any, axis: int, channels: Channels, known: Constants, unit_of: Mapping[int, int]) -> Reader:
    """A sum over channels, which loses nothing with a channel of zeros."""
    atoms = channels.of(source)[axis]
    given = known.channel(source, axis)
    return Reader(
        None,
        torch.ones(1, atoms.numel(), dtype=torch.bool),
        torch.full((1,), -1),
        _units_at(atoms, atoms.numel(), channels, unit_of),
        given.where(given.value == 0),
        1,
    )


def _agreeing(found: list[Reader], module: nn.Module, uses: Counter[int]) -> list[Reader]:
    """Lets a bias take over constants that all calls of its layer agree on, if no other layer has it."""
    calls: dict[str, list[Reader]] = {}
    for reader in found:
        if reader.path is not None:
            calls.setdefault(reader.path, []).append(reader)
    agreed = []
    for reader in found:
        known = reader.known
        for other in calls.get(reader.path, ()) if reader.path is not None else ():
            known = known.where(other.known.mask & (other.known.value == known.value))
        bias = getattr(module.get_submodule(reader.path), "bias", None) if reader.path is not None else None
        if isinstance(bias, Tensor) and uses[id(bias)] > 1:
            known = known.where(known.value == 0)
        agreed.append(Reader(reader.path, reader.touches, reader.rows, reader.columns, known, reader.groups))
    return agreed


def taken_over(reader: Reader, weight: Tensor, removed: Tensor) -> Tensor:
    """What the constants of removed units add to each output of a layer: Σ W·c, in double precision.

    Args:
        reader: The layer.
        weight: Its weight [out, in/groups, ...].
        removed: Bool, one entry a unit.

    Returns:
        [out].
    """
    constants = reader.known.where(is_gone(reader.columns, removed)).value.double()
    kernels = weight.detach().double()
    kernels = kernels.flatten(2).sum(2) if kernels.ndim > 2 else kernels
    return per_group(constants, kernels, reader.groups)
