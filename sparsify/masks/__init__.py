"""Masks: exact, beside their parameters, and in force at every step."""

from __future__ import annotations

from sparsify.masks.exact import count, magnitude_mask, random_mask, topk_mask
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.patterns import Pattern, Unstructured, parse_pattern
from sparsify.masks.state import (
    GradientMask,
    MaskedParameter,
    attach_hooks,
    gradient_mask,
    masked_parameters,
    set_mask,
    verify_masks,
    zero_outside,
)

__all__ = [
    "GradientMask",
    "MaskedParameter",
    "Pattern",
    "SparseGraphModule",
    "Unstructured",
    "attach_hooks",
    "count",
    "gradient_mask",
    "magnitude_mask",
    "masked_parameters",
    "parse_pattern",
    "random_mask",
    "set_mask",
    "topk_mask",
    "verify_masks",
    "zero_outside",
]
