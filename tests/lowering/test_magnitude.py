"""Cutting without torch keeps what the masks of training keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsify.lowering.magnitude import cut
from sparsify.masks.patterns import parse_pattern
from sparsify.pattern_rules import parse_rule


@pytest.mark.parametrize("shape", [(16, 24), (8, 12, 3, 3), (8, 12, 1, 5)])
@pytest.mark.parametrize("pattern", ["unstructured", "fan-in", "2:4", "4x1", "2x3"])
def test_the_largest_weights_that_the_pattern_allows_stay(shape, pattern):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    rule = parse_rule(pattern)
    left = cut(weight, rule, 0.25)
    count = rule.count(shape, 0.25)
    mask = parse_pattern(pattern).mask_from_scores(torch.from_numpy(np.abs(weight)), count).numpy()
    assert np.count_nonzero(left) == count
    np.testing.assert_array_equal(left, np.where(mask, weight, 0))


def test_equal_magnitudes_go_to_the_lower_position():
    left = cut(np.array([[1, -1, 1, 1], [-1, 1, 1, 1]], np.float32), parse_rule("unstructured"), 0.5)
    assert left.tolist() == [[1, -1, 1, 1], [0, 0, 0, 0]]
