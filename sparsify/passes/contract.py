"""What a pass is: requires, run, ensures, and a base class that runs all three in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch.fx

from sparsify.errors import Refusal, SparsifyError
from sparsify.graph.facts import Facts
from sparsify.graph.traced import Traced
from sparsify.passes.dialect import check_dialect
from sparsify.planning import Plan
from sparsify.scaling import Scaling

Init = Literal["scratch", "preserve"]


@dataclass(frozen=True)
class Context:
    """What the passes of one rewrite share; never changed by a pass.

    Attributes:
        traced: The model as it was given.
        facts: Its facts.
        scaling: Multipliers of every parameter of the result.
        init: `scratch` draws new weights, `preserve` keeps the given ones.
        seed: Seed of weights and masks.
        base_std: Base standard deviations by parameter name, where the user fixes them.
        new_connections: Share of every mask that goes to new units, where given weights are kept.
    """

    traced: Traced
    facts: Facts
    scaling: Scaling
    init: Init
    seed: int
    base_std: Mapping[str, float]
    new_connections: float = 0.0


@dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        graph: The resulting module.
        modified: Number of things changed, counted; what a thing is, the pass says.
        refusals: What the pass left alone.
    """

    graph: torch.fx.GraphModule
    modified: int
    refusals: tuple[Refusal, ...] = ()


class Pass(ABC):
    """One step of a rewrite. A subclass holds no state but the context."""

    name: ClassVar[str]

    def __init__(self, context: Context) -> None:
        self.context = context

    def requires(self, graph: torch.fx.GraphModule, plan: Plan) -> None:  # noqa: B027
        """Raises SparsifyError when the pass cannot start from `graph`."""

    @abstractmethod
    def run(self, graph: torch.fx.GraphModule, plan: Plan) -> PassResult:
        """Does the work; may change `graph` unless it is the given model's."""

    def ensures(self, graph: torch.fx.GraphModule, plan: Plan) -> None:  # noqa: B027
        """Raises SparsifyError when the result is not what the pass promises."""

    @final
    def __call__(self, graph: torch.fx.GraphModule, plan: Plan) -> PassResult:
        """Runs requires on the input, the pass, then ensures and the dialect check on the result."""
        self.requires(graph, plan)
        result = self.run(graph, plan)
        self.ensures(result.graph, plan)
        check_dialect(result.graph)
        return result

    def failed(self, what: str) -> SparsifyError:
        """The error of a broken contract: a bug here, not a mistake of the user's."""
        return SparsifyError(f"pass {self.name!r}: {what}; this is a bug, please report it with the model")


def mark(node: torch.fx.Node, by: str, origin: str) -> None:
    """Notes in a node which pass made or changed it, and from what."""
    node.meta["provenance"] = (*node.meta.get("provenance", ()), {"pass": by, "origin": origin})
