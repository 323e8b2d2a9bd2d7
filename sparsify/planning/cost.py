"""FLOPs as a function of widths and densities, over the layers of one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, gcd, prod

from sparsify.graph.facts import Facts, LayerFacts

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
    """

    facts: Facts
    masked: tuple[Weight, ...]
    dense: tuple[Weight, ...]
    widened: frozenset[str]

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
            step = multiple // gcd(multiple, group.granularity)
            width = step * floor(group.size * factor / step + 0.5)
            least = step * -(-group.size // step)
            widths[group.id] = max(width, least) if group.id in self.widened else group.size
        return widths

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
