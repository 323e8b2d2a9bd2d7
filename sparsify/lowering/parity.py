"""Compares two forms of one model on the same inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsify.errors import ParityError

Array = np.ndarray

TOLERANCE = 1024 * float(np.finfo(np.float32).eps)
"""Largest difference allowed, as a share of the output's largest magnitude.

Two float32 summation orders over a few thousand terms differ by some ten epsilons in a layer; deep
models multiply that by their depth. A wrong weight, index or bias is far above.
"""

COARSE = 16
"""The same in epsilons of a coarser type, in which nodes are rounded at their end, not at every term."""

_SMALLEST_SCALE = 1e-3
_SENTINEL = 1e30  # masked logits and the like: compared, but no scale for the rest


def compare(
    expected: Mapping[str, Array], actual: Mapping[str, Array], *, what: str, epsilon: float = 0.0
) -> float:
    """Checks outputs against a reference.

    Args:
        expected: Reference outputs by name.
        actual: Outputs to check by name.
        what: What was compared with what, for the message.
        epsilon: Epsilon of the coarsest type that the models compute in, where that is not the outputs'.

    Returns:
        Largest absolute difference of any floating-point output.

    Raises:
        ParityError: Some output has another shape, other non-finite entries, or differs by more than
            `TOLERANCE` of its largest magnitude (integers and booleans: in more than one entry in a hundred);
            or there is nothing to compare.
    """
    worst = 0.0
    compared = 0
    for name, reference in expected.items():
        value = actual[name]
        if not isinstance(reference, np.ndarray) or reference.dtype.kind not in "fiub":
            continue  # sequences, maps and strings
        if reference.shape != value.shape:
            raise ParityError(f"{what}: output {name!r} has shape {value.shape}, expected {reference.shape}")
        compared += reference.size
        if reference.dtype.kind != "f":
            _compare_exact(name, reference, value, what)
        elif reference.size:
            worst = max(worst, _compare_floats(name, reference, value, what, epsilon))
    if not compared:
        raise ParityError(f"{what}: the model returns no numbers to compare on these inputs")
    return worst


def _compare_exact(name: str, reference: Array, value: Array, what: str) -> None:
    wrong = int(np.count_nonzero(reference != value))
    if wrong * 100 > reference.size:
        raise ParityError(f"{what}: {wrong} of {reference.size} entries of output {name!r} differ")


def _compare_floats(name: str, reference: Array, value: Array, what: str, epsilon: float) -> float:
    first, second = reference.astype(np.float64), value.astype(np.float64)
    finite = np.isfinite(first)
    same = np.array_equal(first[~finite], second[~finite], equal_nan=True)
    if not same or not np.isfinite(second[finite]).all():
        raise ParityError(f"{what}: output {name!r} differs in where it is infinite or not a number")
    if not finite.any():
        raise ParityError(
            f"{what}: output {name!r} has no finite entry on random inputs, which proves nothing; "
            "pass example inputs"
        )
    first, second = first[finite], second[finite]
    ordinary = np.abs(first) < _SENTINEL
    scale = max(_SMALLEST_SCALE, float(np.max(np.abs(first), where=ordinary, initial=0.0)))
    difference = np.abs(first - second)
    share = max(TOLERANCE, COARSE * max(epsilon, float(np.finfo(reference.dtype).eps)))
    allowed = share * np.where(ordinary, scale, np.abs(first))
    worst = float(np.max(difference, where=ordinary, initial=0.0))
    if (difference > allowed).any():
        raise ParityError(
            f"{what}: output {name!r} differs by {worst:.3g} where {share * scale:.3g} is allowed "
            f"(largest magnitude {scale:.3g})"
        )
    return worst
