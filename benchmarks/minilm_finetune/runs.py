"""What is trained: the runs and their parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

SPARSE = {
    "static": "magnitude, then fine-tuned",
    "gmp": "GMP while fine-tuning",
    "rigl": "RigL from magnitude",
    "wide": "wide (inner, iso-FLOP), RigL",
}
WIDE_DENSITY = 0.5


@dataclass(frozen=True)
class Run:
    """One model.

    Attributes:
        method: `dense`; `one-shot` (the fine-tuned dense model, pruned and measured); a key of `SPARSE`; or
            `latency`, which times everything that seed 0 wrote.
        density: Share of the masked weights that stays.
        distilled: Whether the fine-tuned dense model of the same seed teaches.
        seed: Of head, dropout and order.
        steps: Optimizer steps.
        batch: Functions in a step.
        lr: Base learning rate.
    """

    method: str
    density: float
    distilled: bool
    seed: int
    steps: int
    batch: int
    lr: float

    @property
    def name(self) -> str:
        """For files and the progress."""
        taught = "-distilled" if self.distilled else ""
        return f"{self.method}-{self.density:g}{taught}-seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Attributes:
        dense: The dense run of seed 0.
        seeds: Number of seeds.
        densities: Of the masked models.
        methods: Keys of `SPARSE`.
    """

    dense: Run
    seeds: int
    densities: tuple[float, ...]
    methods: tuple[str, ...]

    def runs(self, part: str) -> Iterator[Run]:
        """The runs of a part, seed by seed."""
        for seed in range(self.seeds):
            yield from self._of_seed(part, replace(self.dense, seed=seed))

    def _of_seed(self, part: str, first: Run) -> Iterator[Run]:
        if part == "dense":
            yield first
        elif part == "one-shot":
            yield from (replace(first, method="one-shot", density=density) for density in self.densities)
        elif part in ("tune", "distill"):
            wanted = ("gmp", "rigl") if part == "distill" else ("static", "gmp", "rigl")
            # A teacher costs a third, and is worth most where most is cut.
            for density in self.densities if part == "tune" else (min(self.densities),):
                for method in (name for name in wanted if name in self.methods):
                    yield replace(first, method=method, density=density, distilled=part == "distill")
        elif part == "wide" and "wide" in self.methods:
            yield replace(first, method="wide", density=WIDE_DENSITY)
        elif part == "latency" and first.seed == 0:
            yield replace(first, method="latency")
