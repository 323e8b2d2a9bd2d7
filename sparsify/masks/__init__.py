"""Masks: exact, beside their parameters, and in force at every step."""

from __future__ import annotations

from sparsify.masks.exact import magnitude_mask, random_mask, topk_mask
from sparsify.masks.model_pattern import check_patterns, pattern_of, patterns_of, unwrapped
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.patterns import (
    NM,
    Blocks,
    FanIn,
    Pattern,
    Unstructured,
    from_matrix,
    parse_pattern,
    to_matrix,
)
from sparsify.masks.state import (
    GradientMask,
    MaskedParameter,
    attach_hooks,
    gradient_mask,
    mark_inside,
    masked_parameters,
    set_mask,
    verify_masks,
    zero_outside,
)
from sparsify.pattern_rules import count

__all__ = [
    "NM",
    "Blocks",
    "FanIn",
    "GradientMask",
    "MaskedParameter",
    "Pattern",
    "SparseGraphModule",
    "Unstructured",
    "attach_hooks",
    "check_patterns",
    "count",
    "from_matrix",
    "gradient_mask",
    "magnitude_mask",
    "mark_inside",
    "masked_parameters",
    "parse_pattern",
    "pattern_of",
    "patterns_of",
    "random_mask",
    "set_mask",
    "to_matrix",
    "topk_mask",
    "unwrapped",
    "verify_masks",
    "zero_outside",
]
