"""What a traced model's dimensions are: width groups, layers with roles and FLOPs, and baked-in literals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsify.errors import Refusal
from sparsify.graph.poly import Poly


@dataclass(frozen=True)
class WidthGroup:
    """All tensor dimensions that follow one width symbol.

    Attributes:
        id: Name of the symbol in every ``Poly`` of the facts (its first member, made unique).
        size: Present value of the symbol. Channels, or heads where the head size is fixed.
        granularity: Channels that one unit of the symbol stands for: the greatest common divisor of the
            coefficients with which it enters its members (the head size, for heads).
        members: Parameter dimensions that hold the symbol, as ``"encoder.0.fc1.weight[0]"``.
        residual: Whether an addition of two activations carries it.
        pinned: Why it must keep its size, or None where it may grow.
    """

    id: str
    size: int
    granularity: int
    members: tuple[str, ...]
    residual: bool
    pinned: str | None


@dataclass(frozen=True)
class LayerFacts:
    """A layer whose weight could be masked.

    Attributes:
        fqn: Path of the module.
        kind: ``linear``, ``conv1d``, ``conv2d``, ``conv3d`` or ``embedding``.
        role: ``input``, ``hidden``, ``readout``, ``depthwise``, ``grouped`` or ``embedding``.
        weight: Path of the weight parameter.
        dims: Shape of the weight over width symbols.
        flops: FLOPs at density 1 and the example's shapes, over width symbols.
        batchnorm_follows: Whether a batch normalization reads the output.
        groups: Convolution groups over width symbols (a depthwise layer's follow its channels); 1 otherwise.
        node: Name of the first graph node that calls it.
    """

    fqn: str
    kind: str
    role: str
    weight: str
    dims: tuple[Poly, ...]
    flops: Poly
    batchnorm_follows: bool
    groups: Poly
    node: str


@dataclass(frozen=True)
class Literal:
    """An int in ``node.args`` (the path starts with an index) or ``node.kwargs`` (a name), and its size."""

    node: str
    path: tuple[int | str, ...]
    value: Poly


@dataclass(frozen=True)
class Facts:
    """Everything that planning and rewriting know about a model.

    Attributes:
        groups: Width groups, pinned ones included.
        layers: Layers in execution order.
        parameters: Shape of every parameter and buffer over width symbols; pinned widths are numbers.
        literals: Sizes baked into the graph that must follow the widths.
        other_flops: FLOPs outside of ``layers``: attention products and other matrix products.
        refusals: Operators that no rule knows, and what they pin.
    """

    groups: tuple[WidthGroup, ...]
    layers: tuple[LayerFacts, ...]
    parameters: Mapping[str, tuple[Poly, ...]]
    literals: tuple[Literal, ...]
    other_flops: Poly
    refusals: tuple[Refusal, ...]
