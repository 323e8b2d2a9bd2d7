"""Times of callables beside one another, over several rounds of alternating blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from sparsify.runtime.timing import interleave

ROUNDS = 3
_LEAST = 2


def compare(
    calls: Mapping[str, Callable[[], object]], seconds: float, rounds: int = ROUNDS
) -> dict[str, Any]:
    """Median milliseconds of every callable, and how many times as fast as the first each of them is.

    Args:
        calls: What to time; the first is what the others are compared with.
        seconds: For each callable, over all rounds.
        rounds: Comparisons whose medians make the result, and whose extremes its range.

    Returns:
        `ms`, `speedup` and `range` (smallest and largest speedup of a round), each by the callable's name.
    """
    found = [
        dict(
            zip(
                calls,
                interleave(
                    list(calls.values()),
                    seconds=seconds / rounds,
                    warmup=_LEAST if index == 0 else 1,
                    minimum=_LEAST,
                ),
                strict=True,
            )
        )
        for index in range(rounds)
    ]
    first = next(iter(calls))
    ratios = {name: [at[first].median / at[name].median for at in found] for name in calls}
    return {
        "ms": {name: 1e3 * median(at[name].median for at in found) for name in calls},
        "speedup": {name: median(values) for name, values in ratios.items()},
        "range": {name: [min(values), max(values)] for name, values in ratios.items()},
    }
