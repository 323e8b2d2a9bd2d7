"""What the tables are held against: the least that is promised, and what is aimed at."""

from __future__ import annotations

from collections.abc import Mapping

Key = tuple[str, str, float, int]

LAYERS: Mapping[Key, tuple[float, float]] = {
    ("3072x768", "unstructured", 0.9, 1): (6.5, 9.0),
    ("3072x768", "unstructured", 0.9, 64): (5.0, 6.5),
    ("3072x768", "unstructured", 0.9, 256): (4.5, 5.5),
    ("3072x768", "fan-in", 0.9, 1): (6.5, 9.0),
    ("3072x768", "4x1", 0.9, 1): (7.0, 9.0),
    ("3072x768", "4x1", 0.9, 64): (7.0, 8.0),
    ("3072x768", "16x1", 0.9, 1): (11.0, 13.0),
    ("3072x768", "16x1", 0.9, 64): (5.0, 7.0),
    ("1536x1536", "unstructured", 0.75, 1): (2.4, 3.0),
    ("1536x1536", "unstructured", 0.75, 64): (2.5, 3.0),
    ("1536x1536", "unstructured", 0.75, 256): (2.3, 2.8),
    ("1536x1536", "4x1", 0.75, 64): (4.5, 6.0),
    ("1536x1536", "4x1", 0.75, 256): (3.5, 4.0),
}
"""Speedup of a layer by its shape, mask, sparsity and batch size, on one thread."""

NETWORKS: Mapping[Key, tuple[float, float]] = {
    ("resnet50", "unstructured", 0.9, 1): (2.1, 2.5),
    ("resnet50", "unstructured", 0.9, 16): (4.4, 5.0),
    ("bert", "unstructured", 0.8, 1): (2.7, 3.2),
    ("bert", "unstructured", 0.8, 8): (2.9, 3.3),
    ("bert", "unstructured", 0.9, 1): (3.5, 4.5),
    ("bert", "unstructured", 0.9, 8): (3.9, 4.5),
}
"""The same of networks, on two threads."""

ISO: Mapping[str, tuple[float, float]] = {"unstructured": (1.7, 1.3), "4x1": (1.15, 1.0)}
"""Most that a sparse network of equal FLOPs may take of the dense time, by its mask."""

NEVER_SLOWER = 0.97
"""Speedup below which sparse counts as slower: the rest is noise."""

OVER_PEER = 1.2
"""Ratio of our speedup to the peer's."""

BYTES = (0.17, 0.13)
"""Most that the sparse layers may take of the dense bytes, at 90 %."""


def judged(value: float, limits: tuple[float, float] | None, *, least: bool = True) -> str:
    """`goal`, `floor` or `missed`; a dash where nothing was promised.

    Args:
        value: What was measured.
        limits: Floor and goal.
        least: Whether more is better.
    """
    if limits is None:
        return "–"
    floor, goal = limits
    sign = 1 if least else -1
    if sign * value >= sign * goal:
        return "goal"
    return "floor" if sign * value >= sign * floor else "**missed**"
