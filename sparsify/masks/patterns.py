"""What a mask may look like. A new pattern is one rule, one file beside this one and one row of `_MASKS`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsify.masks.blocks import Blocks
from sparsify.masks.fan_in import FanIn
from sparsify.masks.matrix import from_matrix, to_matrix
from sparsify.masks.n_m import NM
from sparsify.masks.pattern import Pattern
from sparsify.masks.unstructured import Unstructured
from sparsify.pattern_rules import BlocksRule, FanInRule, NMRule, PatternRule, UnstructuredRule, parse_rule

__all__ = [
    "NM",
    "Blocks",
    "FanIn",
    "Pattern",
    "Unstructured",
    "from_matrix",
    "parse_pattern",
    "to_matrix",
]

_MASKS: dict[type[PatternRule], Callable[[Any], Pattern]] = {
    UnstructuredRule: lambda rule: Unstructured(),
    FanInRule: lambda rule: FanIn(),
    NMRule: lambda rule: NM(rule.n, rule.m),
    BlocksRule: lambda rule: Blocks(rule.r, rule.c),
}


def parse_pattern(text: str) -> Pattern:
    """Reads a pattern's name: `unstructured`, `fan-in`, `N:M` (2:4) or `RxC` (4x1: 4 outputs, 1 input).

    Raises:
        UserError: When the name is unknown, or its numbers make no pattern.
    """
    rule = parse_rule(text)
    return _MASKS[type(rule)](rule)
