"""The units of every width group: which places of which tensors go when one of them is taken away.

A unit is a neuron, a filter or a head. The facts say how many a group has; the channels say which places of
its members belong to one. Where the two disagree, or an operator computes something else with a unit fewer,
the group is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.errors import Refusal
from sparsify.graph.channels import Channels
from sparsify.graph.facts import Facts, WidthGroup
from sparsify.graph.poly import Poly

RULE = "narrow"


@dataclass(frozen=True)
class Unit:
    """What must be taken away together.

    Attributes:
        group: Id of the width group.
        numbers: Which of the group's units these are; several where they cannot be told apart.
    """

    group: str
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Units:
    """All units of a model.

    Attributes:
        units: The units, in the order of their groups.
        places: For each dimension of each tensor, the unit of every place; -1 where the place stays.
        refusals: Groups that keep their size, and why.
    """

    units: tuple[Unit, ...]
    places: Mapping[tuple[str, int], Tensor]
    refusals: tuple[Refusal, ...]

    def of_group(self, group: str) -> list[int]:
        """Places in `units` of one group's units."""
        return [place for place, unit in enumerate(self.units) if unit.group == group]

    def refused(self, group: str) -> str | None:
        """Why a group keeps its size, or None."""
        return next((refusal.reason for refusal in self.refusals if refusal.fqn == group), None)


def is_gone(places: Tensor, removed: Tensor) -> Tensor:
    """Whether the unit of each place is taken out.

    Args:
        places: Units; -1 where a place stays.
        removed: Bool, one entry a unit.
    """
    gone = torch.zeros_like(places, dtype=torch.bool)
    owned = places >= 0
    gone[owned] = removed[places[owned]]
    return gone


def find_units(facts: Facts, channels: Channels) -> Units:
    """Units of every group that may get smaller.

    Args:
        facts: Width groups and the shapes over them.
        channels: Channels of the same model.
    """
    return _Finder(facts, channels).units()


class _Finder:
    def __init__(self, facts: Facts, channels: Channels) -> None:
        self._facts, self._channels = facts, channels
        self._roots = {
            (name, axis): channels.roots(atoms)
            for name, dims in facts.parameters.items()
            if any(size.constant is None for size in dims)
            for axis, atoms in channels.tensor(name).items()
        }
        self._blocked = self._reasons()

    def _reasons(self) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for atoms, reason in self._channels.blocked:
            for root in self._channels.roots(atoms):
                reasons.setdefault(root, reason)
        return reasons

    def units(self) -> Units:
        found: list[Unit] = []
        of_root: dict[int, int] = {}
        refusals = []
        for group in self._facts.groups:
            if group.pinned is not None:
                refusals.append(Refusal(group.id, RULE, group.pinned or "its width is fixed"))
                continue
            reason, units = self._group(group, of_root)
            if reason is not None:
                refusals.append(Refusal(group.id, RULE, reason))
                continue
            places = {
                numbers: len(found) + rank for rank, numbers in enumerate(dict.fromkeys(units.values()))
            }
            found.extend(Unit(group.id, numbers) for numbers in places)
            of_root |= {root: places[numbers] for root, numbers in units.items()}
        owners = {
            place: torch.tensor([of_root.get(root, -1) for root in roots])
            for place, roots in self._roots.items()
        }
        return Units(tuple(found), owners, tuple(refusals))

    def _members(self, group: WidthGroup) -> Iterator[tuple[tuple[str, int], int]]:
        """Dimensions that hold nothing but the group, with the places that one unit has in them."""
        for member in group.members:
            name, _, axis = member.rpartition("[")
            place = (name, int(axis[:-1]))
            alone = self._facts.parameters[name][place[1]].divide(Poly.symbol(group.id))
            if alone is not None and alone.constant is not None:
                yield place, alone.constant

    def _group(
        self, group: WidthGroup, taken: Mapping[int, int]
    ) -> tuple[str | None, dict[int, tuple[int, ...]]]:
        """Why a group is refused, or the units to which each root belongs, as their numbers."""
        units: dict[int, tuple[int, ...]] = {}
        for place, each in self._members(group):
            roots = self._roots[place]
            blocked = next((self._blocked[root] for root in roots if root in self._blocked), None)
            if blocked is not None:
                return blocked, {}
            if not taken.keys().isdisjoint(roots):
                return f"{place[0]} mixes its units with those of another width", {}
            if units.keys().isdisjoint(roots):
                # Places that nothing ties but their number: the first goes with the first, and so on.
                units |= _numbered(roots, each)
            counts: Counter[tuple[int, ...]] = Counter(units.get(root, ()) for root in roots)
            if counts != {numbers: len(numbers) * each for numbers in set(units.values())}:
                return f"it cannot be told which places of {place[0]} belong to which unit", {}
        if not units:
            return "no dimension holds it alone", {}
        return None, units


def _numbered(roots: list[int], each: int) -> dict[int, tuple[int, ...]]:
    """Units by root, numbered in the order in which they first appear."""
    units: dict[int, tuple[int, ...]] = {}
    start = 0
    counts = Counter(roots)
    for root in counts:
        size = max(1, counts[root] // each)
        units[root] = tuple(range(start, start + size))
        start += size
    if each == 1:
        positions: dict[int, list[int]] = {}
        for position, root in enumerate(roots):
            positions.setdefault(root, []).append(position)
        return {root: tuple(found) for root, found in positions.items()}
    return units
