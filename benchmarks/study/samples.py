"""Results over seeds, and differences of two kinds of run that are paired by their seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from benchmarks.study.ledger import Ledger, R


@dataclass(frozen=True)
class Sample:
    """One number for every seed.

    Attributes:
        values: By seed.
    """

    values: Mapping[int, float]

    @classmethod
    def of(cls, ledger: Ledger[R], run: R, measure: str) -> Sample:
        """What the finished runs that differ from `run` in their seed only measured; None is left out."""
        found: dict[int, float] = {}
        for other, result in ledger.items():
            seed = other.seed  # type: ignore[attr-defined]
            if other == replace(run, seed=seed) and result.get(measure) is not None:  # type: ignore[type-var]
                found[seed] = float(result[measure])
        return cls(dict(sorted(found.items())))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over the seeds.

        Raises:
            StatisticsError: There is none.
        """
        return fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Standard deviation over the seeds (of a sample, n − 1); None with fewer than two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    def minus(self, other: Sample) -> Sample:
        """Differences over the seeds that both have."""
        return Sample(
            {seed: self.values[seed] - other.values[seed] for seed in self.values if seed in other.values}
        )

    def times(self, factor: float) -> Sample:
        """Every value multiplied."""
        return Sample({seed: factor * value for seed, value in self.values.items()})

    @property
    def exceeds_spread(self) -> bool:
        """Whether the mean is further from 0 than one standard deviation."""
        return self.std is not None and abs(self.mean) > self.std

    def text(self, digits: int = 2, sign: bool = False) -> str:
        """`mean ± std`; a dash where there is nothing."""
        if not self.values:
            return "–"
        mean = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return mean if self.std is None else f"{mean} ± {self.std:.{digits}f}"

    def to_json(self) -> dict[str, Any]:
        """Mean, standard deviation and the values by seed; of an empty sample nothing."""
        if not self.values:
            return {}
        return {
            "mean": self.mean,
            "std": self.std,
            "seeds": {str(seed): value for seed, value in self.values.items()},
        }
