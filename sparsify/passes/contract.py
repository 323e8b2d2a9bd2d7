"""What a pass is: requires, run, ensures, and a base class that runs all three in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch.fx

from sparsify.errors import Refusal, SparsifyError
from sparsify.graph.facts import Facts
from sparsify.graph.traced import Traced
from sparsify.graph.verify import propagate
from sparsify.passes.changes import Snapshot, changed_nodes, snapshot
from sparsify.passes.dialect import check_dialect
from sparsify.planning import Plan
from sparsify.scaling import Base, Scaling

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
        base: The dense base that scaling is relative to, where it is not the given model.
    """

    traced: Traced
    facts: Facts
    scaling: Scaling
    init: Init
    seed: int
    base_std: Mapping[str, float]
    new_connections: float = 0.0
    base: Base | None = None


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
    """One step of a rewrite. A subclass holds no state but the context.

    Attributes:
        name: What the pass is called in provenance, errors and `--print-after`; its own in a pipeline.
        context: What the passes of one rewrite share.
    """

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
        """Runs the pass and everything around it.

        requires on the input; the pass; provenance for nodes that are new or changed and have none of it;
        the dialect; shapes, where new nodes lack them; ensures on the result.

        Raises:
            SparsifyError: The pass breaks the contract; the message names it and what it broke.
        """
        self.requires(graph, plan)
        before = snapshot(graph)
        result = self.run(graph, plan)
        if not isinstance(result, PassResult):
            raise self.failed(f"run must return a PassResult, not {type(result).__name__}")
        touched = changed_nodes(before, result.graph)
        if touched:
            self._check_honest(result, touched)
            for node in touched:
                self._mark(node, before)
            check_dialect(result.graph)
            result.graph.recompile()
            if any("val" not in node.meta for node in touched if node.op != "output"):
                propagate(result.graph)
        else:
            check_dialect(result.graph)
        self.ensures(result.graph, plan)
        return result

    def _check_honest(self, result: PassResult, touched: Sequence[torch.fx.Node]) -> None:
        if result.graph is self.context.traced.module:
            raise self.failed(
                f"it changed node {touched[0].name} of the given model, which stays as it was; put the pass "
                "behind 'wide', whose result is a copy, or return a copy"
            )
        if result.modified == 0:
            raise self.failed(f"it changed node {touched[0].name} and counted no change")

    def _mark(self, node: torch.fx.Node, before: Snapshot) -> None:
        made = node.meta.get("provenance", ())
        if any(entry["pass"] == self.name for entry in made):
            return
        sources = [source.name for source in node.all_input_nodes if source.name in before]
        mark(node, self.name, node.name if node.name in before else next(iter(sources), node.name))

    def failed(self, what: str) -> SparsifyError:
        """The error of a broken contract: a bug of the pass, not a mistake of the user's."""
        ours = type(self).__module__.startswith("sparsify.")
        where = "please report it with the model" if ours else f"see {type(self).__qualname__}"
        return SparsifyError(f"pass {self.name!r}: {what}; this is a bug of the pass, {where}")


def mark(node: torch.fx.Node, by: str, origin: str) -> None:
    """Notes in a node which pass made or changed it, and from what."""
    node.meta["provenance"] = (*node.meta.get("provenance", ()), {"pass": by, "origin": origin})
