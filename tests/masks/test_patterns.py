from __future__ import annotations

import pytest
import torch

from sparsify.errors import SparsifyError, UserError
from sparsify.masks import parse_pattern


def test_unstructured_masks_have_the_exact_count():
    pattern = parse_pattern("unstructured")
    scores = torch.rand(13, 7, generator=torch.Generator().manual_seed(0))
    for density in (0.001, 0.1, 0.25, 0.5, 1.0):
        expected = max(1, round(density * 91))
        for mask in (pattern.mask_from_scores(scores, density), pattern.random((13, 7), density)):
            pattern.check(mask)
            assert int(mask.sum()) == expected
    assert pattern.step((13, 7)) == 1 / 91


def test_unstructured_keeps_the_largest_scores():
    mask = parse_pattern("unstructured").mask_from_scores(torch.tensor([[3.0, 1.0], [2.0, 4.0]]), 0.5)
    assert mask.tolist() == [[True, False], [False, True]]


def test_check_refuses_what_is_no_mask():
    with pytest.raises(SparsifyError, match="bool"):
        parse_pattern("unstructured").check(torch.ones(2, 2))


@pytest.mark.parametrize("text", ["fan-in", "2:4", "4x1"])
def test_patterns_of_later_versions_are_named_as_such(text):
    with pytest.raises(UserError, match=rf"'{text}' is not available"):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["", "Unstructured", "2:", "x4", "blocks"])
def test_unknown_patterns_are_refused(text):
    with pytest.raises(UserError, match="unknown pattern"):
        parse_pattern(text)
