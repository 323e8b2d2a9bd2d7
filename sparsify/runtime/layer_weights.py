"""Random weights with the masks that layers are timed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsify.errors import UserError
from sparsify.pattern_rules import BlocksRule, FanInRule, NMRule, parse_rule
from sparsify.runtime.layouts import LAYOUTS, block_rows

Array = np.ndarray[Any, np.dtype[Any]]


def natural_layout(pattern: str) -> str:
    """The layout that stores a pattern without zeros in the largest blocks; csr where there are none.

    Args:
        pattern: `unstructured`, `fan-in`, `N:M` or `RxC`.

    Raises:
        UserError: Some other pattern.
    """
    rule = parse_rule(pattern)
    rows = rule.r if isinstance(rule, BlocksRule) else 1
    return max((name for name in LAYOUTS if rows % block_rows(name) == 0), key=block_rows)


def masked_weight(shape: Sequence[int], sparsity: float, pattern: str) -> Array:
    """A random weight with zeros in a pattern, the same at every call.

    Args:
        shape: [out, in] or [out, in, kernel height, kernel width].
        sparsity: Share of zeros.
        pattern: `unstructured`, `fan-in`, `N:M` or `RxC`.

    Returns:
        float32 of this shape; outputs have a variance of about 1 for inputs of variance 1.

    Raises:
        UserError: Some other pattern, one that the shape cannot have, or a sparsity that N:M does not have.
    """
    rule = parse_rule(pattern)
    reason = rule.refusal(shape)
    if reason is not None:
        raise UserError(f"a weight of shape {list(shape)} cannot have the pattern {pattern}: {reason}")
    if rule.density is not None and abs(1 - sparsity - rule.density) > 1e-6:
        raise UserError(f"the pattern {pattern} has a sparsity of {1 - rule.density:g}, not {sparsity:g}")
    rng = np.random.default_rng(0)
    outputs, inputs = shape[0], int(np.prod(shape[1:]))
    r, c = (rule.r, rule.c) if isinstance(rule, BlocksRule) else (1, 1)
    cells = {FanInRule: (outputs, inputs), NMRule: (-1, getattr(rule, "m", 1))}.get(type(rule), (1, -1))
    units = np.empty((outputs // r, inputs // c), bool).reshape(cells)
    kept = max(1, round((1 - sparsity) * units.shape[1]))
    units[:] = np.argsort(np.argsort(rng.random(units.shape), axis=1), axis=1) < kept
    mask = np.kron(units.reshape(outputs // r, inputs // c), np.ones((r, c), bool))
    # Inputs stand innermost in the matrix that patterns see.
    mask = np.moveaxis(mask.reshape(outputs, *shape[2:], shape[1]), -1, 1)
    weight = rng.standard_normal(tuple(shape)) * mask * np.sqrt(outputs / np.count_nonzero(mask))
    return np.ascontiguousarray(weight, np.float32)
