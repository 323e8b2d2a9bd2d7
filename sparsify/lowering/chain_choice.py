"""Decides whether sparse convolutions are joined into chains, and which ones are sparse for that.

Node by node, a convolution goes through the whole batch on all threads, and large batches come from memory at
every node. In a chain each thread takes images of its own, and what lies between two convolutions of an image
stays in a cache. So inside chains a convolution costs what it costs on one image and one thread, and more of
them are faster sparse. Where maps are kept as rows (`row_cost`), even a single image gains. Otherwise, with
fewer than two images a thread a chain is no better than its nodes, and none is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from sparsify.lowering.candidate import Candidate
from sparsify.lowering.chains import find_regions, with_joined
from sparsify.lowering.cost import Decision, Machine, Times, columns, times
from sparsify.lowering.decisions import Match, Request, choose, estimate_all, shapes_asked
from sparsify.lowering.graph import Graph
from sparsify.lowering.kernel_costs import CHAIN_STEP
from sparsify.lowering.neighbours import beside_dense
from sparsify.lowering.rewrite import Packer, rewrite
from sparsify.lowering.row_cost import time_on_rows
from sparsify.lowering.tune import NOT_SLOWER, WORTHWHILE, compare_models
from sparsify.lowering.workload import workloads
from sparsify.runtime import layouts

FREE_BATCHES = (1, 16, 128)
"""Batches that a file may see which leaves its batch open."""

IMAGES = 2
"""Images for each thread from which a chain pays without rows."""

BAND_ROWS = 4
"""Rows of a map for each thread from which threads share an image on rows."""

GAP = 1.3
"""Sparse time over dense time up to which a convolution may become sparse to close a gap between others."""

WORTHWHILE_ON_ROWS = 1.15
"""Estimated speedup from which a convolution becomes sparse inside a chain."""

NEARLY_FULL = 0.995
"""Density from which a weight has nothing to skip."""

Decisions = dict[int, Decision]


@dataclass(frozen=True)
class Choice:
    """What becomes of every candidate, and of those that become sparse convolutions.

    Attributes:
        decisions: By the candidate's index.
        chained: Whether convolutions that feed each other are joined.
    """

    decisions: Decisions
    chained: bool


def choose_chains(
    graph: Graph,
    source: Path,
    matches: Sequence[Match],
    decisions: Decisions,
    packer: Packer,
    request: Request,
) -> Choice:
    """Chooses between nodes of their own and chains.

    Args:
        graph: Index of the source model.
        source: The source file.
        matches: All matches, in the file's order.
        decisions: The best decisions without chains.
        packer: Keeps packed weights.
        request: How to decide.
    """
    plain = Choice(decisions, False)
    convolutions = [match for match in matches if isinstance(match, Candidate) and _joins(match)]
    if request.chains is False or request.target != "cpu" or len(convolutions) < 2:
        return plain
    if request.layout is not None:
        return replace(plain, chained=bool(request.chains))
    machine = Machine.here(request.threads)
    batches = _batches(graph, request, convolutions)
    estimate = _Estimate(graph, matches, convolutions, machine, batches, image_shapes(graph, request))
    if request.chains is None and not estimate.may_pay():
        return plain
    chained = Choice(estimate.for_chains(decisions), True)
    options = [replace(plain, chained=True), chained]
    if request.chains is None:
        options.insert(0, plain)
    if request.tune:
        return _fastest(graph, source, matches, options, packer, request, machine)
    return estimate.best(options)


def image_shapes(graph: Graph, request: Request) -> list[dict[str, tuple[int, ...]]]:
    """Shapes of the graph's maps for one image, as far as they are known at the sizes asked for."""
    asked = next(iter(shapes_asked(graph, request)), None)
    shapes: Mapping[str, Sequence[object]] = graph.shapes if asked is None else asked
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        rest = [dim for dim in shape[1:] if isinstance(dim, int)]
        if len(shape) == 4 and len(rest) == 3:
            found[name] = (1, *rest)
    return [found]


def joined(graph: Graph, choice: Choice, matches: Sequence[Match], packer: Packer) -> onnx.ModelProto:
    """The lowered model of a choice."""
    model = rewrite(graph, choose(graph, matches, choice.decisions), packer)
    return with_joined(model, find_regions(model)) if choice.chained else model


def _joins(candidate: Candidate) -> bool:
    return candidate.geometry is not None and not candidate.before and not candidate.after


def _batches(graph: Graph, request: Request, convolutions: Sequence[Candidate]) -> tuple[int, ...]:
    if request.batches:
        return request.batches
    batch = next(iter(graph.shapes.get(convolutions[0].x, ())), None)
    return (batch,) if isinstance(batch, int) else FREE_BATCHES


def _pays(batch: int, machine: Machine) -> bool:
    return batch >= IMAGES * machine.threads


class _Estimate:
    """Estimated times of all convolutions together, sparse and dense ones."""

    def __init__(
        self,
        graph: Graph,
        matches: Sequence[Match],
        convolutions: Sequence[Candidate],
        machine: Machine,
        batches: Sequence[int],
        shapes: Sequence[Mapping[str, tuple[int, ...]]],
    ) -> None:
        self._graph = graph
        self._matches = matches
        self._convolutions = convolutions
        self._machine = machine
        self._alone = replace(machine, threads=1)
        self._batches = batches
        self._shapes = shapes
        self._stored: dict[tuple[int, str], int] = {}
        self._planes = self._outer_maps()

    def may_pay(self) -> bool:
        """Whether chains may be faster at some batch."""
        return any(_pays(batch, self._machine) for batch in self._batches) or any(
            self._on_rows(match, "csr") < math.inf for match in self._convolutions
        )

    def for_chains(self, decisions: Decisions) -> Decisions:
        """Decisions for one image on one thread where that is how convolutions run, gaps closed."""
        found = estimate_all(self._graph, self._convolutions, self._shapes, self._alone)
        found = decisions | {
            match.index: self._image_by_image(match, found[match.index])
            for match in self._convolutions
            if match.density <= NEARLY_FULL
        }
        for match in self._convolutions:
            closed = self._closed(match, found)
            if closed is not None:
                found = found | {match.index: closed}
        return found

    def best(self, options: Sequence[Choice]) -> Choice:
        """The least mean over the batches; never one that is slower than the first at some batch."""
        first = [self.total(options[0], batch) for batch in self._batches]
        shares = []
        for option in options:
            share = [
                self.total(option, batch) / time for batch, time in zip(self._batches, first, strict=True)
            ]
            shares.append(_mean(share) if max(share) <= 1.0 + 1e-9 else math.inf)
        return options[shares.index(min(shares))]

    def total(self, choice: Choice, batch: int) -> float:
        """ns of all convolutions on a batch."""
        sparse = {index for index, decision in choice.decisions.items() if decision.layout is not None}
        sum_ns = 0.0
        for match in self._convolutions:
            layout = choice.decisions[match.index].layout
            if layout is None:
                sum_ns += self._times(match, "csr", batch, self._machine, (False, False)).dense
                continue
            sides = beside_dense(self._graph, match.x, match.output, sparse)
            chain = self._in_chain if choice.chained else self._by_itself
            sum_ns += chain(match, layout, batch, sides)
        return sum_ns

    def _by_itself(self, match: Candidate, layout: str, batch: int, sides: tuple[bool, bool]) -> float:
        return self._times(match, layout, batch, self._machine, sides).sparse

    def _in_chain(self, match: Candidate, layout: str, batch: int, sides: tuple[bool, bool]) -> float:
        """ns of a step of a chain: each thread has images of its own, or all share those there are."""
        machine, rows = self._machine, self._on_rows(match, layout)
        if _pays(batch, machine):
            call = CHAIN_STEP - machine.costs.conv[layout].call
            image = self._times(match, layout, 1, self._alone, sides).sparse + call
            return min(image, rows) * batch / machine.threads
        height, _ = self._sides(match.output)
        shared = height >= BAND_ROWS * machine.threads or machine.threads == 1
        evenness = 1.0 if machine.threads == 1 else machine.costs.evenness
        at_once = rows * batch / (evenness * machine.threads)
        plain = self._by_itself(match, layout, batch, sides)
        return min(plain, at_once) if shared else plain

    def _image_by_image(self, match: Candidate, decision: Decision) -> Decision:
        """What an estimate on one image becomes where the step may run on rows."""
        dense_ns = self._times(match, "csr", 1, self._alone, (False, False)).dense
        gain = dense_ns / self._on_rows(match, "csr")
        if decision.layout is not None or gain < WORTHWHILE_ON_ROWS:
            return replace(decision, reason=f"{decision.reason}, image by image")
        return Decision("csr", f"estimated {gain:.1f}× as fast as dense on rows of its maps, image by image")

    def _on_rows(self, match: Candidate, layout: str) -> float:
        """ns for one image on one thread; infinity where it cannot run so."""
        _, before = self._sides(match.x)
        height, after = self._sides(match.output)
        if not (before and height and after):
            return math.inf
        return time_on_rows(
            match,
            (before, after),
            height,
            self._machine,
            layout=layout,
            stored=self._stored_entries(match, layout),
            planes=self._planes[match.index],
        )

    def _outer_maps(self) -> dict[int, tuple[bool, bool]]:
        """Whether each convolution's input and output lie outside chains, if all that can be are sparse."""
        able = {match.index for match in self._convolutions if match.density <= NEARLY_FULL}
        sparse = {
            match.index: Decision("csr" if match.index in able else None, "")
            for match in self._matches
            if isinstance(match, Candidate)
        }
        chosen = [candidate for candidate, _ in choose(self._graph, self._matches, sparse).values()]
        given = {candidate.output for candidate in chosen}
        read = {name for candidate in chosen for name in (candidate.x, candidate.residual)}
        found = {match.index: (True, True) for match in self._convolutions}
        return found | {
            candidate.index: (candidate.x not in given, candidate.output not in read) for candidate in chosen
        }

    def _sides(self, value: str) -> tuple[int, int]:
        """Height and width of a map; zeros where they are not known."""
        shape = self._shapes[0].get(value, ())
        return (shape[2], shape[3]) if len(shape) == 4 else (0, 0)

    def _times(
        self, match: Candidate, layout: str, images: int, machine: Machine, sides: tuple[bool, bool]
    ) -> Times:
        stored = self._stored_entries(match, layout)
        size = max(columns(match, self._graph, self._shapes))
        return times(match, images * size, machine, layout=layout, stored=stored, converted=sides)

    def _stored_entries(self, match: Candidate, layout: str) -> int:
        key = (match.index, layout)
        if key not in self._stored:
            self._stored[key] = layouts.stored(match.weight, layout)
        return self._stored[key]

    def _closed(self, match: Candidate, decisions: Decisions) -> Decision | None:
        """The decision that makes a dense convolution sparse where the sum of all times falls by that."""
        if decisions[match.index].layout is not None or match.density > NEARLY_FULL:
            return None
        dense_ns, sparse_ns = self._times(match, "csr", 1, self._alone, (False, False))
        sparse_ns = min(sparse_ns, self._on_rows(match, "csr"))
        if sparse_ns > GAP * dense_ns or not self._between(match, decisions):
            return None
        closed = Decision("csr", "")
        batch = max(self._batches)
        before, after = (
            self.total(Choice(way, True), batch) for way in (decisions, decisions | {match.index: closed})
        )
        if after >= before:
            return None
        reason = (
            f"closes a gap in a chain: estimated {dense_ns / sparse_ns:.2f}× as fast as dense by itself, "
            f"but all convolutions together take {1e-6 * after:.2f} ms and not {1e-6 * before:.2f} ms"
        )
        return replace(closed, reason=reason)

    def _between(self, match: Candidate, decisions: Decisions) -> bool:
        """Whether sparse convolutions feed a convolution and read what it gives."""
        chosen = choose(self._graph, self._matches, decisions | {match.index: Decision("csr", "")})
        own, _ = chosen[match.index]
        others = [candidate for index, (candidate, _) in chosen.items() if index != match.index]
        fed = any(candidate.output == own.x for candidate in others if _joins(candidate))
        return fed and any(own.output in (candidate.x, candidate.residual) for candidate in others)


def _fastest(
    graph: Graph,
    source: Path,
    matches: Sequence[Match],
    options: Sequence[Choice],
    packer: Packer,
    request: Request,
    machine: Machine,
) -> Choice:
    """The choice whose whole file is fastest and nowhere slower than its source."""
    request.progress("measuring chains", 0, 1)
    feeds = workloads(graph, source, request.inputs, batches=request.batches, symbols=request.sizes)
    models = [joined(graph, option, matches, packer) for option in options]
    measured = compare_models(source, models, feeds, machine=machine)
    request.progress("measuring chains", 1, 1)
    shares = []
    for i, option in enumerate(options, start=1):
        fast = all(at[i] <= NOT_SLOWER * at[0] for at in measured)
        bonus = 1.0 if option.chained else WORTHWHILE  # a chain must be worth it
        shares.append(bonus * _mean(at[i] / at[0] for at in measured) if fast else math.inf)
    if min(shares) == math.inf:
        return options[0]
    best = options[shares.index(min(shares))]
    said = "; ".join(
        f"{1e3 * at[options.index(best) + 1]:.2f} ms, source {1e3 * at[0]:.2f} ms" for at in measured
    )
    return Choice({i: _said(decision, said, best) for i, decision in best.decisions.items()}, best.chained)


def _said(decision: Decision, said: str, best: Choice) -> Decision:
    if decision.layout is None or not best.chained:
        return decision
    return replace(decision, reason=f"{decision.reason}; whole file with chains: {said}")


def _mean(shares: Iterable[float]) -> float:
    logarithms = [math.log(share) for share in shares]
    return math.exp(sum(logarithms) / len(logarithms))
