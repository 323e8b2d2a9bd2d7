"""Groups from the graph: the units of every width that `narrow` can take away, whole.

A unit's group is what makes it: its rows of the weights that write it, its biases, gains and shifts of norms.
Or, for `channels`, what reads it: its columns. Only where a unit whose group is zero would leave the graph is
it offered; that is tried once, with the first unit of every width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparsify.dst.group_parts import AxisPart
from sparsify.dst.groups import Groups, GroupSet
from sparsify.errors import Refusal
from sparsify.graph.channel_rules import follow
from sparsify.graph.channels import Channels
from sparsify.graph.constant_rules import constants
from sparsify.graph.dead_units import dead_units, readers
from sparsify.graph.extents import Extents
from sparsify.graph.facts import Facts, WidthGroup
from sparsify.graph.facts import facts as facts_of
from sparsify.graph.traced import Traced
from sparsify.graph.units import Units, find_units

RULE = "groups"
UnitKind = Literal["units", "neurons", "filters", "channels", "heads", "ffn"]
Chosen = Callable[[str], bool]


def unit_groups(model: nn.Module, traced: Traced, kind: UnitKind, chosen: Chosen) -> Groups:
    """Groups of one kind, made of the parameters of a model.

    Args:
        model: The module that is trained.
        traced: Its trace, which shares its parameters.
        kind: `neurons` (of linear layers), `filters` (of convolutions), `heads`, `ffn` (neurons of inner
            layers, off every residual stream), `units` (all of these), or `channels`: inputs of convolutions.
        chosen: Whether the layer of this fqn takes part; one that does not keeps every width it touches.

    Raises:
        UserError: There are none.
    """
    return _Analysis(model, traced).groups(kind, chosen)


@dataclass(frozen=True)
class _Member:
    """A dimension of a parameter over some width: whether what it belongs to reads the width or makes it."""

    name: str
    axis: int
    reads: bool
    layer: str
    kind: str


class _Analysis:
    def __init__(self, model: nn.Module, traced: Traced) -> None:
        self._traced = traced
        self._facts: Facts = facts_of(traced)
        self._extents = Extents(traced, self._facts)
        self._channels: Channels = follow(traced.module, self._facts, self._extents)
        self._units: Units = find_units(self._facts, self._channels)
        self._owners = _owners(model)
        self._widths = {group.id: group for group in self._facts.groups}
        self._members = self._by_width()

    def groups(self, kind: UnitKind, chosen: Chosen) -> Groups:
        refusals = [Refusal(one.fqn, RULE, one.reason) for one in self._units.refusals]
        wanted: dict[str, list[_Member]] = {}
        for width, members in self._members.items():
            sides = [member for member in members if member.reads == (kind == "channels")]
            if len(self._units.of_group(width)) < 2 or not self._is(kind, self._widths[width], sides):
                continue
            reason = self._refusal(sides, chosen)
            if reason is None:
                wanted[width] = sides
            else:
                refusals.append(Refusal(width, RULE, reason))
        stuck = self._stuck(wanted)
        refusals += [Refusal(width, RULE, reason) for width, reason in stuck.items()]
        return self._numbered({w: m for w, m in wanted.items() if w not in stuck}, kind, refusals)

    def _by_width(self) -> dict[str, list[_Member]]:
        """Members of every width that may get smaller, tied parameters once."""
        layers = {layer.weight: layer for layer in self._facts.layers}
        found: dict[str, list[_Member]] = {}
        seen: set[tuple[int, int]] = set()
        parameters = dict(self._traced.module.named_parameters(remove_duplicate=False))
        for (name, axis), places in self._units.places.items():
            if name not in parameters or (id(parameters[name]), axis) in seen:
                continue
            seen.add((id(parameters[name]), axis))
            layer = layers.get(name)
            kind = layer.kind if layer is not None else self._norm_or_bias(name)
            reads = layer is not None and axis == (0 if "transpose" in kind or kind == "embedding" else 1)
            owner = layer.fqn if layer is not None else name.rpartition(".")[0]
            for unit in torch.unique(places[places >= 0]).tolist():
                width = self._units.units[unit].group
                member = _Member(name, axis, reads, owner, kind)
                if member not in found.setdefault(width, []):
                    found[width].append(member)
        return found

    def _norm_or_bias(self, name: str) -> str:
        owner = self._traced.module.get_submodule(name.rpartition(".")[0])
        return "slope" if isinstance(owner, nn.PReLU) else "vector"

    def _is(self, kind: UnitKind, width: WidthGroup, sides: list[_Member]) -> bool:
        kinds = {member.kind for member in sides} - {"vector", "slope"}
        convolves = any(one.startswith("conv") for one in kinds)
        if not kinds:
            return False
        if kind in ("channels", "filters"):
            return convolves
        heads = width.granularity > 1 and not convolves
        neurons = not convolves and not heads and "linear" in kinds
        match kind:
            case "heads":
                return heads
            case "neurons":
                return neurons
            case "ffn":
                return neurons and not width.residual
            case _:
                return convolves or heads or neurons

    def _refusal(self, sides: list[_Member], chosen: Chosen) -> str | None:
        for member in sides:
            if member.kind != "vector" and not chosen(member.layer):
                return f"{member.layer} was left out"
        axes = Counter(name for name, _ in self._units.places)
        several = [one.name for one in sides if one.kind == "vector" and axes[one.name] > 1]
        if several:
            return f"{several[0]} belongs to no layer, so it cannot be told which side of it reads"
        parameters = dict(self._traced.module.named_parameters(remove_duplicate=False))
        foreign = [one.name for one in sides if id(parameters[one.name]) not in self._owners]
        if foreign:
            return (
                f"{foreign[0]} is stored in another form in the model (transposed or packed); train the "
                "model that transform or archive.wrap(trace(...)) returns"
            )
        return None

    def _stuck(self, wanted: Mapping[str, list[_Member]]) -> dict[str, str]:
        """Widths whose units would stay when their groups are zero."""
        firsts = {self._units.of_group(width)[0]: width for width in wanted}
        with self._zeroed(firsts, wanted):
            known = constants(self._traced.module, self._extents)
            removed = dead_units(self._units, readers(self._channels, known, self._units))
        return {
            width: "a unit of zeros leaves a constant that what reads it cannot take over"
            for unit, width in firsts.items()
            if not bool(removed[unit])
        }

    @contextmanager
    def _zeroed(self, firsts: Mapping[int, str], wanted: Mapping[str, list[_Member]]) -> Iterator[None]:
        """The model with one unit of every width at zero; as it was afterwards, bit by bit."""
        kept: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for unit, width in firsts.items():
                for member in wanted[width]:
                    param = self._traced.module.get_parameter(member.name)
                    kept.append((param, param.detach().clone()))
                    places = torch.nonzero(self._units.places[member.name, member.axis] == unit).flatten()
                    param.detach().index_fill_(member.axis, places.to(param.device), 0)
            yield
        finally:
            for param, values in reversed(kept):
                param.detach().copy_(values)

    def _numbered(
        self, wanted: Mapping[str, list[_Member]], kind: UnitKind, refusals: list[Refusal]
    ) -> Groups:
        sets: list[GroupSet] = []
        number = torch.full((len(self._units.units),), -1)
        for width, members in wanted.items():
            first = sets[-1].first + sets[-1].count if sets else 0
            units = self._units.of_group(width)
            number[units] = torch.arange(first, first + len(units))
            sets.append(GroupSet(width, self._name(kind, self._widths[width], members), first, len(units)))
        found = dict.fromkeys(
            (member.name, member.axis)
            for members in wanted.values()
            for member in members
            if member.kind != "slope"
        )
        return Groups(sets, [self._part(name, axis, number) for name, axis in found], refusals)

    def _name(self, kind: UnitKind, width: WidthGroup, members: list[_Member]) -> str:
        if kind != "units":
            return kind
        return next(one for one in ("filters", "heads", "neurons") if self._is(one, width, members))

    def _part(self, name: str, axis: int, number: Tensor) -> AxisPart:
        param = self._traced.module.get_parameter(name)
        fqn, owner, leaf = self._owners[id(param)]
        places = self._units.places[name, axis]
        ids = torch.where(places >= 0, number[places.clamp_min(0)], -1)
        return AxisPart(fqn, owner, leaf, axis, ids.to(param.device))


def _owners(model: nn.Module) -> dict[int, tuple[str, nn.Module, str]]:
    """Path, module and name of every parameter by its id; a tied one's first."""
    found: dict[int, tuple[str, nn.Module, str]] = {}
    for path, owner in model.named_modules():
        for name, param in owner._parameters.items():
            if param is not None:
                found.setdefault(id(param), (f"{path}.{name}" if path else name, owner, name))
    return found
