"""FLOPs as a function of widths and densities, over the layers of one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor, gcd, lcm, prod

from sparsify.graph.facts import Facts, LayerFacts, WidthGroup
from sparsify.pattern_rules import PatternRule

DEFAULT_MULTIPLE = 8
"""Channels that hardware likes to have in whole."""

Widths = Mapping[str, int] | Mapping[str, float]


@dataclass(frozen=True)
class Weight:
    """One weight parameter with every layer, and every call, that uses it.

    Attributes:
        fqn: Path of the parameter.
        layers: Its uses; more than one where layers are tied or called again.
    """

    fqn: str
    layers: tuple[LayerFacts, ...]

    @property
    def symbols(self) -> frozenset[str]:
        """Width symbols of the weight's dimensions."""
        return frozenset(symbol for dim in self.layers[0].dims for symbol in dim.symbols)

    def shape(self, widths: Widths) -> tuple[int, ...]:
        """Shape of the weight at integer widths."""
        return tuple(round(dim.evaluate(widths)) for dim in self.layers[0].dims)

    def size(self, widths: Widths) -> float:
        """Number of weights, fractional at fractional widths."""
        return prod(dim.evaluate(widths) for dim in self.layers[0].dims)

    def flops(self, widths: Widths) -> float:
        """FLOPs of all uses at density 1."""
        return sum(layer.flops.evaluate(widths) for layer in self.layers)


def blocks_of(weights: Iterable[Weight], rule: PatternRule, base: Widths) -> dict[str, int]:
    """What the widths of groups must be multiples of, in channels, so that weights can have a pattern.

    Args:
        weights: The weights that are to have it.
        rule: The pattern.
        base: Widths of the given model.
    """
    outputs, inputs = rule.multiples
    blocks: dict[str, int] = {}
    for weight in weights:
        layer = weight.layers[0]
        each = outputs if layer.groups.symbols else outputs * round(layer.groups.evaluate(base))
        for dim, block in zip(layer.dims, (each, inputs), strict=False):
            for symbol in dim.symbols:
                blocks[symbol] = lcm(blocks.get(symbol, 1), block)
    return blocks


def weights_of(facts: Facts, ties: Iterable[Sequence[str]] = ()) -> tuple[Weight, ...]:
    """Gathers the layers by the Parameter they use; ties count as one."""
    first = {key: names[0] for names in ties for key in names}
    uses: dict[str, list[LayerFacts]] = {}
    for layer in facts.layers:
        uses.setdefault(first.get(layer.weight, layer.weight), []).append(layer)
    return tuple(Weight(fqn, tuple(layers)) for fqn, layers in uses.items())


@dataclass(frozen=True)
class Cost:
    """FLOPs of a model in which some weights are masked and some groups widen.

    Attributes:
        facts: Facts of the given model.
        masked: Weights that get a mask.
        dense: Weights that get none.
        widened: Ids of the groups whose width follows the width factor.
        blocks: By group, what the channels of the pattern come in besides the multiple asked for.
    """

    facts: Facts
    masked: tuple[Weight, ...]
    dense: tuple[Weight, ...]
    widened: frozenset[str]
    blocks: Mapping[str, int] = field(default_factory=dict)

    @property
    def base(self) -> dict[str, int]:
        """Widths of the given model."""
        return {group.id: group.size for group in self.facts.groups}

    @property
    def budget(self) -> int:
        """FLOPs of the given model."""
        return self.total(self.base, (1.0,) * len(self.masked))

    def scaled(self, factor: float) -> dict[str, float]:
        """Widths with every widened group multiplied by `factor`, not rounded."""
        return {
            group.id: group.size * (factor if group.id in self.widened else 1.0)
            for group in self.facts.groups
        }

    def rounded(self, factor: float, multiple: int) -> dict[str, int]:
        """Widths at `factor`, rounded so that the dimensions they make are multiples of `multiple`.

        One unit of a group stands for `granularity` channels (a head, for heads). No group gets narrower; one
        that may not be rounded down is rounded up.
        """
        widths = {}
        for group in self.facts.groups:
            step = self._step(group, multiple)
            width = step * floor(group.size * factor / step + 0.5)
            least = step * -(-group.size // step)
            widths[group.id] = max(width, least) if group.id in self.widened else group.size
        return widths

    def neighbours(self, group: WidthGroup, factor: float, multiple: int) -> tuple[int, int]:
        """The widths right below and above `factor` times a group's, rounded as `rounded` does; often one."""
        step = self._step(group, multiple)
        least = step * -(-group.size // step)
        low = step * floor(group.size * factor / step + 1e-9)
        high = step * -(-(group.size * factor - 1e-9) // step)
        return (max(low, least), max(round(high), least))

    def _step(self, group: WidthGroup, multiple: int) -> int:
        """Units of a group that make whole multiples of channels and whole blocks."""
        channels = lcm(multiple, self.blocks.get(group.id, 1))
        return channels // gcd(channels, group.granularity)

    def fixed(self, widths: Widths) -> float:
        """FLOPs of everything that is not masked."""
        return self.facts.other_flops.evaluate(widths) + sum(weight.flops(widths) for weight in self.dense)

    def flops(self, widths: Widths) -> tuple[float, ...]:
        """FLOPs at density 1 of each masked weight."""
        return tuple(weight.flops(widths) for weight in self.masked)

    def sizes(self, widths: Widths) -> tuple[float, ...]:
        """Sizes of the masked weights."""
        return tuple(weight.size(widths) for weight in self.masked)

    def total(self, widths: Widths, densities: Sequence[float]) -> int:
        """FLOPs of the model at the given densities of the masked weights."""
        spent = sum(flops * density for flops, density in zip(self.flops(widths), densities, strict=True))
        return round(self.fixed(widths) + spent)
