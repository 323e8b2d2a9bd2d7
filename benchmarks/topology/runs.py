"""What is trained: models, methods and densities, and the sizes of the study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.study.ledger import Ledger


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        model: `lenet` or `resnet`.
        method: A row of `METHODS`.
        density: Kept share of the layers that are made sparse; 1 is the dense model.
        distribution: How the density is spread over them.
        parameterization: How initial weights follow the density; learning rates do not.
        width: Channels of the ResNet's stem.
        batch: Images in a step.
        steps: Optimizer steps.
        update_every: Steps between two changes of the topology.
        lr: Peak learning rate.
        seed: Decides weights, masks and batches.
    """

    model: str
    method: str
    density: float
    distribution: str
    parameterization: str
    width: int
    batch: int
    steps: int
    update_every: int
    lr: float
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """One line of the tables.

    Attributes:
        label: As tables and plots call it.
        algorithm: Name in `sparsify.dst.METHODS`; None trains without one.
        pattern: Of the masks.
        options: Of the algorithm.
        begins_dense: Whether all weights are there at first.
        interval: Its updates are so many times as far apart as the others'.
        dynamic: Whether it changes masks.
    """

    label: str
    algorithm: str | None
    pattern: str = "unstructured"
    options: dict[str, Any] = field(default_factory=dict)
    begins_dense: bool = False
    interval: int = 1
    dynamic: bool = True


METHODS = {
    "dense": Method("dense", None, dynamic=False),
    "static": Method("static", "static", dynamic=False),
    "set": Method("SET", "set"),
    "rigl": Method("RigL", "rigl"),
    "srigl": Method("SRigL", "srigl", "fan-in", {"ablation": True}),
    "srigl-95": Method("SRigL γ .95", "srigl", "fan-in", {"ablation": True, "gamma": 0.95}),
    "srigl-no-ablation": Method("SRigL without ablation", "srigl", "fan-in", {"ablation": False}),
    "sparse-momentum": Method("SparseMomentum", "sparse-momentum", interval=3),
    "gmp": Method("GMP", "gmp", begins_dense=True),
}
SPARSE = tuple(name for name in METHODS if name != "dense")


@dataclass(frozen=True)
class Of:
    """How one model is trained.

    Attributes:
        densities: The most telling first.
        steps: Optimizer steps of a run.
        batch: Images in a step.
        rates: Learning rates that the dense model is tuned over, with seed 0.
        width: Channels of the ResNet's stem.
        methods: The sparse ones.
    """

    densities: tuple[float, ...]
    steps: int
    batch: int
    rates: tuple[float, ...]
    width: int = 0
    methods: tuple[str, ...] = SPARSE

    def tuning(self, dense: Run) -> list[Run]:
        """The dense runs that decide the learning rate."""
        return [replace(dense, lr=rate) for rate in self.rates]


def base(name: str, of: Of, distribution: str, update_every: int) -> Run:
    """The dense run of seed 0 at the first of the rates."""
    return Run(
        name, "dense", 1.0, distribution, "sp", of.width, of.batch, of.steps, update_every, of.rates[0]
    )


def tuned(dense: Run, of: Of, ledger: Ledger[Run]) -> Run | None:
    """The dense run at the best rate (lowest test loss), or None while some are missing or none converged."""
    runs = of.tuning(dense)
    if any(run not in ledger for run in runs):
        return None
    losses = {run: ledger[run]["loss"] for run in runs if ledger[run]["loss"] is not None}
    return min(losses, key=lambda run: losses[run]) if losses else None


def cell(dense: Run, method: str, density: float) -> Run:
    """The run of a method at a density, with the settings and the seed of the tuned dense run.

    Masks that hold from the start have their initial weights scaled to the density. Where all weights are
    there at first, the initial weights are the dense model's.
    """
    if method == "dense":
        return dense
    row = METHODS[method]
    return replace(
        dense,
        method=method,
        density=density,
        parameterization="sp" if row.begins_dense else "supar",
        update_every=dense.update_every * row.interval,
    )


def cells(dense: Run, of: Of, seeds: int) -> Iterator[Run]:
    """All runs beside the tuning, one seed after the other."""
    for seed in range(seeds):
        start = replace(dense, seed=seed)
        yield start
        for density in of.densities:
            for method in of.methods:
                yield cell(start, method, density)
