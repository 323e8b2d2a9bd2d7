"""Keeps the largest weights that a pattern allows, without torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparsify.lowering.candidate import Array
from sparsify.pattern_rules import BlocksRule, FanInRule, NMRule, PatternRule, UnstructuredRule


def cut(weight: Array, rule: PatternRule, density: float) -> Array:
    """The weight with its smallest entries set to zero.

    Counts are exact, and equal magnitudes go to the lower position. A weight is seen as a matrix as
    `pattern_rules` says: one row an output, the inputs of one kernel position side by side.

    Args:
        weight: float32 [out, in, ...].
        rule: A pattern that the shape can have; see `PatternRule.refusal`.
        density: Share to keep, which N:M fixes by itself.
    """
    outputs, inputs = weight.shape[:2]
    kernel = weight.shape[2:]
    matrix = np.moveaxis(weight, 1, -1).reshape(outputs, -1)
    kept = _mask(np.abs(matrix), rule, rule.count(weight.shape, density))
    mask = np.moveaxis(kept.reshape(outputs, *kernel, inputs), -1, 1)
    return np.where(mask, weight, np.float32(0))


def _mask(magnitude: Array, rule: PatternRule, count: int) -> npt.NDArray[np.bool_]:
    rows, columns = magnitude.shape
    if isinstance(rule, UnstructuredRule):
        return _largest(magnitude.reshape(1, -1), count).reshape(rows, columns)
    if isinstance(rule, FanInRule):
        return _largest(magnitude, count // rows)
    if isinstance(rule, NMRule):
        return _largest(magnitude.reshape(-1, rule.m), rule.n).reshape(rows, columns)
    if isinstance(rule, BlocksRule):
        r, c = rule.r, rule.c
        tiles = magnitude.reshape(rows // r, r, columns // c, c).sum(axis=(1, 3), dtype=np.float64)
        chosen = _largest(tiles.reshape(1, -1), count // (r * c)).reshape(tiles.shape)
        return np.repeat(np.repeat(chosen, r, axis=0), c, axis=1)
    raise TypeError(f"no rule of magnitude for {type(rule).__name__}")


def _largest(scores: Array, count: int) -> npt.NDArray[np.bool_]:
    """The `count` largest entries of every row."""
    mask = np.zeros(scores.shape, np.bool_)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    np.put_along_axis(mask, order, True, axis=1)
    return mask
