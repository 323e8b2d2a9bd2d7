"""The inverse of Sparse Wide: width groups made smaller by taking dead units out.

A unit (a neuron, a filter, a head) is dead when everything that reads it reads zeros, or a constant: then the
constant goes into the bias of what read it, b ← b + Σ W·c. Behind a convolution that pads with zeros the
constant has to be 0. Nothing here trains or approximates: outputs stay what they were, and that is checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.errors import ParityError, Refusal, UserError
from sparsify.graph.channel_rules import follow
from sparsify.graph.constant_rules import constants
from sparsify.graph.dead_units import dead_units, readers
from sparsify.graph.extents import Extents
from sparsify.graph.facts import Facts
from sparsify.graph.facts import facts as facts_of
from sparsify.graph.poly import Poly
from sparsify.graph.traced import Traced
from sparsify.graph.units import Units, find_units
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import masked_parameters
from sparsify.passes.narrow_apply import remaining, take_out
from sparsify.passes.narrow_check import allowed, difference
from sparsify.passes.narrow_record import narrowed_record
from sparsify.passes.record import Record

KEY = "narrowing"


@dataclass(frozen=True)
class NarrowedGroup:
    """What became of one width group.

    Attributes:
        id: The group.
        size: Units before.
        removed: Units taken out, by number.
        granularity: Channels a unit stands for (the head size, for heads).
    """

    id: str
    size: int
    removed: tuple[int, ...]
    granularity: int


@dataclass(frozen=True)
class Narrowing:
    """What narrowing did to a model.

    Attributes:
        groups: Every group that may get smaller, those that lost nothing included.
        refusals: Groups that keep their size whatever their weights are, and why.
        parameters: Parameters before and after, ties counted once, zeros included.
        flops: FLOPs before and after at the example's shapes; masked weights count at their density.
        max_abs_error: Largest absolute difference of any output on random inputs.
    """

    groups: tuple[NarrowedGroup, ...]
    refusals: tuple[Refusal, ...]
    parameters: tuple[int, int]
    flops: tuple[int, int]
    max_abs_error: float


def narrow(
    traced: Traced,
    record: Record,
    *,
    units: Mapping[str, Sequence[int]] | None = None,
    tolerance: float | None = None,
    multiple_of: int = 1,
) -> SparseGraphModule:
    """Takes out dead units, or the listed ones.

    Args:
        traced: The model; left as it is.
        record: What is known of its making.
        units: Units to take out instead of the dead ones, by group id or any member of the group. Constants
            that are known are still taken over by biases.
        tolerance: Largest difference of an output allowed, as a share of its largest magnitude. Without it
            rounding only; with `units` the difference is then reported and not judged.
        multiple_of: Widths that change end as multiples of this, or as they were: some units stay for it.

    Returns:
        The narrowed model; `meta["narrowing"]` holds the `Narrowing`. It shares no memory with the given one.

    Raises:
        UserError: A listed group or unit does not exist or may not go, or `multiple_of` is below 1.
        ParityError: Outputs differ by more than is allowed; nothing is returned.
    """
    if multiple_of < 1:
        raise UserError(f"multiple_of must be at least 1, not {multiple_of}")
    found = facts_of(traced)
    extents = Extents(traced, found)
    channels = follow(traced.module, found, extents)
    known = constants(traced.module, extents)
    known_units = find_units(found, channels)
    reading = readers(channels, known, known_units)
    removed = dead_units(known_units, reading) if units is None else _listed(units, found, known_units)
    removed = _rounded(found, known_units, removed, multiple_of)
    result = take_out(traced.module, found, known_units, removed, reading)
    absolute, relative = difference(traced, result)
    limit = allowed(traced, tolerance)
    if relative > limit and (units is None or tolerance is not None):
        raise ParityError(
            f"narrow: outputs differ by {absolute:.3g}, {relative:.3g} of their largest magnitude, where "
            f"{limit:.3g} is allowed; {_advice(units)}"
        )
    flops = (
        _flops(traced.module, found, {group.id: group.size for group in found.groups}),
        _flops(result, found, remaining(found, known_units, removed)),
    )
    result.sparsify = narrowed_record(traced, record, found, result, flops)
    result.meta[KEY] = Narrowing(
        groups=_report(found, known_units, removed),
        refusals=known_units.refusals,
        parameters=(_count(traced.module), _count(result)),
        flops=flops,
        max_abs_error=absolute,
    )
    return result


def _advice(units: object) -> str:
    if units is not None:
        return "list fewer units, or allow more"
    return "nothing was changed; pass tolerance= if the model is ill-conditioned, or report it with the model"


def _listed(wanted: Mapping[str, Sequence[int]], facts: Facts, units: Units) -> Tensor:
    removed = torch.zeros(len(units.units), dtype=torch.bool)
    for name, numbers in wanted.items():
        group = next((g for g in facts.groups if name == g.id or name in g.members), None)
        if group is None:
            some = ", ".join(g.id for g in facts.groups[:8])
            raise UserError(
                f"units: the model has no width group {name!r}; it has {some}, … (sparsify inspect)"
            )
        reason = units.refused(group.id)
        if reason is not None:
            raise UserError(f"units: {name!r} must keep its size: {reason}; choose another group")
        outside = [number for number in numbers if not 0 <= number < group.size]
        if outside:
            raise UserError(f"units: {name!r} has units 0 to {group.size - 1}, not {outside[0]}")
        places = [
            place for place in units.of_group(group.id) if set(units.units[place].numbers) & set(numbers)
        ]
        _check_whole(name, numbers, places, units)
        removed[places] = True
        if bool(removed[units.of_group(group.id)].all()):
            raise UserError(f"units: {name!r} would lose all of its {group.size} units; one must stay")
    return removed


def _rounded(facts: Facts, units: Units, removed: Tensor, multiple: int) -> Tensor:
    """Fewer of them, so that every width that changes is a multiple in channels.

    A unit that stays though it is dead does no harm, whatever else goes: nobody misses its value.
    """
    result = removed.clone()
    for group in facts.groups:
        step = multiple // math.gcd(multiple, group.granularity)
        going = [place for place in units.of_group(group.id) if bool(removed[place])]
        left = group.size - sum(len(units.units[place].numbers) for place in going)
        wanted = min(group.size, -(-left // step) * step)
        for place in going:
            if left >= wanted and left % step == 0:
                break
            result[place] = False
            left += len(units.units[place].numbers)
    return result


def _check_whole(name: str, numbers: Sequence[int], places: Sequence[int], units: Units) -> None:
    for place in places:
        missing = sorted(set(units.units[place].numbers) - set(numbers))
        if missing:
            raise UserError(
                f"units: of {name!r}, units {', '.join(map(str, units.units[place].numbers))} can only go "
                f"together; add {', '.join(map(str, missing))}"
            )


def _report(facts: Facts, units: Units, removed: Tensor) -> tuple[NarrowedGroup, ...]:
    gone: dict[str, list[int]] = {unit.group: [] for unit in units.units}
    for place, unit in enumerate(units.units):
        if bool(removed[place]):
            gone[unit.group].extend(unit.numbers)
    return tuple(
        NarrowedGroup(group.id, group.size, tuple(sorted(gone[group.id])), group.granularity)
        for group in facts.groups
        if group.id in gone
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(module: nn.Module, facts: Facts, widths: Mapping[str, int]) -> int:
    """FLOPs at these widths, masked weights at the density of their masks."""
    masks = {id(entry.param): entry.density for entry in masked_parameters(module).values()}

    def value(size: Poly) -> int:
        return size.evaluate(widths)

    total = float(value(facts.other_flops))
    for layer in facts.layers:
        total += value(layer.flops) * masks.get(id(module.get_parameter(layer.weight)), 1.0)
    return round(total)
