"""What the runs say: accuracies, paired differences, what was expected, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.study import plots
from benchmarks.study.document import NOT_RUN, refresh, table
from benchmarks.study.ledger import Ledger
from benchmarks.study.samples import Sample
from benchmarks.topology.runs import METHODS, Of, Run, cell

TITLES = {"lenet": "LeNet-300-100", "resnet": "ResNet"}
LOW = 0.05
LOWEST = 0.01


@dataclass(frozen=True)
class Results:
    """The runs of one model.

    Attributes:
        of: How it was trained.
        dense: Its tuned dense run.
        ledger: All runs.
    """

    of: Of
    dense: Run
    ledger: Ledger[Run]

    @property
    def densities(self) -> list[float]:
        """Falling."""
        return sorted(self.of.densities, reverse=True)

    def sample(self, method: str, density: float, measure: str = "accuracy") -> Sample:
        """A measure over the seeds."""
        return Sample.of(self.ledger, cell(self.dense, method, density), measure)

    def over(self, method: str, other: str, density: float) -> Sample:
        """Accuracy of a method above another's, paired, in points."""
        return self.sample(method, density).minus(self.sample(other, density))

    def idle(self, method: str, density: float) -> float | None:
        """Share of outputs of the sparse layers that have no inputs, over all layers and seeds."""
        found = [
            result["idle_outputs"]
            for run, result in self.ledger.items()
            if run == cell(_at(self.dense, run.seed), method, density)
        ]
        if not found:
            return None
        return sum(sum(counts.values()) for counts in found) / len(found)


def _at(run: Run, seed: int) -> Run:
    return Run(**{**asdict(run), "seed": seed})


def write(found: Sequence[Results], folder: Path, document: Path | None) -> dict[str, Any]:
    """Writes the plot and the tables; returns the numbers."""
    if found:
        plots.lines(
            {TITLES[one.dense.model]: _lines(one) for one in found},
            folder / "accuracy.png",
            across="density",
            measure="test accuracy (%)",
            levels={TITLES[one.dense.model]: one.sample("dense", 1.0) for one in found},
        )
    if document is not None:
        by_model = {one.dense.model: one for one in found}
        contents = {}
        for model in TITLES:
            one = by_model.get(model)
            contents[model] = NOT_RUN if one is None else f"{_tuned(one)}\n\n{accuracies(one)}"
            contents[f"{model} differences"] = NOT_RUN if one is None else differences(one)
            contents[f"{model} masks"] = NOT_RUN if one is None else masks(one)
        rows = [row for one in found for row in expected(one)]
        contents["expected"] = table(["expected", "model", "seen", "but"], rows)
        refresh(document, contents)
    return {one.dense.model: _json(one) for one in found}


def accuracies(found: Results) -> str:
    """Mean ± standard deviation by method and density."""
    densities = found.densities
    rows = [["dense", *[found.sample("dense", 1.0).text()] * len(densities)]]
    for method in found.of.methods:
        rows.append([METHODS[method].label, *(found.sample(method, d).text() for d in densities)])
    return table(["test accuracy, %", *(f"density {100 * d:g} %" for d in densities)], rows)


def differences(found: Results) -> str:
    """Points above static masks of the same seed."""
    rows = [
        [METHODS[method].label, *(found.over(method, "static", d).text(sign=True) for d in found.densities)]
        for method in found.of.methods
        if method != "static"
    ]
    return table(["points above static", *(f"density {100 * d:g} %" for d in found.densities)], rows)


def masks(found: Results) -> str:
    """Density as it came out, and outputs without inputs, at the end of training."""
    rows = []
    for method in found.of.methods:
        row = [METHODS[method].label]
        for density in found.densities:
            realised, idle = found.sample(method, density, "sparse_density"), found.idle(method, density)
            row.append("–" if idle is None else f"{100 * realised.mean:.2f} %, {idle:.0f}")
        rows.append(row)
    return table(["density, outputs without inputs", *(f"{100 * d:g} %" for d in found.densities)], rows)


def expected(found: Results) -> list[list[str]]:
    """What the papers lead one to expect, whether it was seen, and where it was not."""
    low = [density for density in found.densities if density <= LOW]
    dynamic = [method for method in found.of.methods if METHODS[method].dynamic]
    claims = {
        f"dynamic methods above static at ≤ {100 * LOW:g} %": [
            (f"{METHODS[m].label} at {100 * d:g} %", found.over(m, "static", d)) for d in low for m in dynamic
        ],
        f"ablation helps SRigL at {100 * LOWEST:g} %": [
            ("with ablation", found.over("srigl", "srigl-no-ablation", LOWEST))
        ],
    }
    rows = [
        [claim, TITLES[found.dense.model], *_verdict(samples)]
        for claim, samples in claims.items()
        if any(len(sample) for _, sample in samples)
    ]
    best = ranking(found)
    if {"gmp", "rigl"} <= best.keys():
        seen = "yes" if set(list(best)[:2]) == {"gmp", "rigl"} else "no"
        order = ", ".join(f"{METHODS[name].label} {mean:.2f}" for name, mean in best.items())
        rows.append(["GMP and RigL on top", TITLES[found.dense.model], seen, f"mean over densities: {order}"])
    return rows


def ranking(found: Results) -> dict[str, float]:
    """Mean accuracy over the densities, best first, of the methods that were run at all of them."""
    means = {}
    for method in found.of.methods:
        samples = [found.sample(method, density) for density in found.densities]
        if all(len(sample) for sample in samples):
            means[method] = sum(sample.mean for sample in samples) / len(samples)
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _verdict(samples: Sequence[tuple[str, Sample]]) -> tuple[str, str]:
    measured = [(name, sample) for name, sample in samples if len(sample)]
    against = [(name, sample) for name, sample in measured if sample.mean <= 0]
    doubtful = [(n, s) for n, s in measured if s.mean > 0 and not s.exceeds_spread]
    remarks = [f"{name}: {sample.text(sign=True)}" for name, sample in against]
    remarks += [f"{name}: {sample.text(sign=True)}, within the spread" for name, sample in doubtful]
    good = len(measured) - len(against)
    return ("yes" if not against else f"{good} of {len(measured)}"), "; ".join(remarks)


def _tuned(found: Results) -> str:
    run = found.dense
    return f"Learning rate {run.lr:g}, {run.steps} steps of {run.batch} images."


def _lines(found: Results) -> dict[str, dict[float, Sample]]:
    return {
        METHODS[method].label: {density: found.sample(method, density) for density in found.densities}
        for method in found.of.methods
    }


def _json(found: Results) -> dict[str, Any]:
    return {
        "run": asdict(found.dense),
        "dense": found.sample("dense", 1.0).to_json(),
        "accuracy": {
            method: {str(density): found.sample(method, density).to_json() for density in found.densities}
            for method in found.of.methods
        },
        "above_static": {
            method: {str(d): found.over(method, "static", d).to_json() for d in found.densities}
            for method in found.of.methods
            if method != "static"
        },
        "ranking": ranking(found),
        "expected": [
            {"claim": claim, "seen": seen, "remarks": remarks} for claim, _, seen, remarks in expected(found)
        ],
    }
