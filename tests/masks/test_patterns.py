from __future__ import annotations

from functools import cache
from itertools import combinations
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsify.errors import SparsifyError, UserError
from sparsify.masks import from_matrix, parse_pattern, to_matrix
from sparsify.masks.rows import random_rows, topk_rows

SHAPES = {
    "unstructured": [(3, 4), (2, 3, 2)],
    "fan-in": [(3, 4), (2, 2, 3), (2, 1, 2, 2)],
    "2:4": [(3, 4), (1, 4, 3), (2, 4, 1, 1), (1, 4, 1, 2, 1)],
    "1:3": [(2, 6), (2, 3, 2)],
    "2x1": [(4, 3), (2, 3, 2), (2, 2, 1, 2)],
    "1x2": [(3, 4), (2, 2, 3)],
    "2x2": [(2, 6), (2, 2, 3), (4, 2), (2, 2, 1, 2, 1)],
}
LARGE = {
    "unstructured": (13, 7),
    "fan-in": (12, 6, 3, 3),
    "2:4": (10, 8, 3, 3),
    "3:16": (5, 32, 3),
    "9:20": (4, 40),
    "4x1": (12, 5, 3, 3),
    "4x8": (8, 16, 3, 3, 2),
}


def counts_of(pattern, shape):
    unit = pattern.unit(shape)
    return [pattern.count(shape, 0.5)] if unit == 0 else range(unit, prod(shape) + 1, unit)


@cache
def masks_of(pattern, shape, nnz):
    """Every mask of a pattern with a count, without empty rows where fan-in is constant."""
    return torch.stack(list(_masks_of(pattern, shape, nnz)))


def _masks_of(pattern, shape, nnz):
    for chosen in combinations(range(prod(shape)), nnz):
        mask = torch.zeros(prod(shape), dtype=torch.bool)
        mask[list(chosen)] = True
        mask = mask.reshape(shape)
        empty = pattern.name == "fan-in" and not mask.flatten(1).any(1).all()
        if pattern.matches(mask).all() and not empty:
            yield mask


CASES = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_mask_of_the_pattern_scores_higher(data):
    name, shape = data.draw(st.sampled_from(CASES))
    pattern = parse_pattern(name)
    nnz = data.draw(st.sampled_from(list(counts_of(pattern, shape))))
    values = data.draw(st.lists(st.integers(-3, 3), min_size=prod(shape), max_size=prod(shape)))
    scores = torch.tensor(values, dtype=torch.float32).reshape(shape)
    mask = pattern.mask_from_scores(scores, nnz)
    pattern.check(mask)
    assert mask.shape == scores.shape
    assert int(mask.sum()) == nnz
    assert scores[mask].sum() == (masks_of(pattern, shape, nnz) * scores).flatten(1).sum(1).max()


@pytest.mark.parametrize(("name", "shape"), LARGE.items())
@pytest.mark.parametrize("density", [0.01, 0.3, 0.8])
def test_counts_are_exact_and_nearest_to_the_density(name, shape, density):
    pattern = parse_pattern(name)
    nnz, unit = pattern.count(shape, density), pattern.unit(shape)
    for mask in (
        pattern.mask_from_scores(torch.randn(shape, generator=torch.Generator().manual_seed(1)), nnz),
        pattern.random(shape, nnz, torch.Generator().manual_seed(2)),
    ):
        pattern.check(mask)
        assert int(mask.sum()) == nnz
    if unit:
        assert nnz == max(unit, unit * round(density * prod(shape) / unit))
        assert pattern.step(shape) == unit / prod(shape)
    else:
        assert nnz == prod(shape) * pattern.density
        assert pattern.step(shape) == 0.0


@pytest.mark.parametrize(
    ("name", "shape", "density"),
    [("unstructured", (2, 4), 0.25), ("fan-in", (2, 4), 0.5), ("2:4", (1, 8), 0.5), ("2x1", (4, 3), 0.5)],
)
def test_every_mask_is_equally_likely(name, shape, density):
    pattern = parse_pattern(name)
    nnz, source = pattern.count(shape, density), torch.Generator().manual_seed(0)
    seen = {tuple(mask.flatten().tolist()): 0 for mask in masks_of(pattern, shape, nnz)}
    draws = 60 * len(seen)
    for _ in range(draws):
        seen[tuple(pattern.random(shape, nnz, source).flatten().tolist())] += 1
    chi_square = sum((found - 60) ** 2 / 60 for found in seen.values())
    freedom = len(seen) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_rows_are_drawn_evenly_where_the_table_of_masks_would_be_too_large():
    drawn = torch.stack([random_rows(64, 40, 7, torch.Generator().manual_seed(i)) for i in range(60)])
    assert (drawn.sum(2) == 7).all()
    chi_square = ((drawn.float().sum((0, 1)) - 672) ** 2 / 672).sum() * 39 / 33
    assert chi_square < 39 + 4 * 78**0.5


@pytest.mark.parametrize("columns", [6, 40])
def test_ties_in_a_row_go_to_the_lower_column(columns):
    scores = torch.ones(3, columns)
    scores[1, columns - 1] = 2.0
    scores[2, 0] = -torch.inf
    mask = topk_rows(scores, 3)
    assert mask[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert mask[1].nonzero().flatten().tolist() == [0, 1, columns - 1]
    assert mask[2].nonzero().flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("columns", [6, 40])
def test_nan_in_a_row_is_an_error(columns):
    scores = torch.ones(3, columns)
    scores[1, 2] = torch.nan
    with pytest.raises(SparsifyError, match="diverged"):
        topk_rows(scores, 2)


def test_the_matrix_has_input_channels_side_by_side():
    weight = torch.arange(2 * 4 * 3 * 3).reshape(2, 4, 3, 3)
    matrix = to_matrix(weight)
    assert torch.equal(matrix[1, 4 * 5 : 4 * 6], weight[1, :, 1, 2])
    assert torch.equal(from_matrix(matrix, weight.shape), weight)


def test_rows_without_a_finite_score_stay_empty():
    scores = torch.rand(4, 6)
    scores[2] = -torch.inf
    mask = parse_pattern("fan-in").mask_from_scores(scores, 6)
    parse_pattern("fan-in").check(mask)
    assert mask.sum(1).tolist() == [2, 2, 0, 2]


def test_n_m_takes_the_counts_that_gradual_pruning_passes_through():
    pattern = parse_pattern("1:4")
    mask = pattern.mask_from_scores(torch.rand(3, 8), 18)
    parse_pattern("3:4").check(mask)
    with pytest.raises(SparsifyError, match="not 1:4"):
        pattern.check(mask)


@pytest.mark.parametrize(
    ("name", "shape", "flip", "place"),
    [
        ("fan-in", (6, 4, 3, 3), (4, 1, 0, 2), "row 4 has 1[79] active inputs, others have 18"),
        ("2:4", (6, 8), (3, 5), "row 3 has [13] of the 4 entries from input 4"),
        ("2:4", (6, 8, 3, 3), (3, 5, 1, 2), r"row 3 has .* from input 4 at kernel position \(1, 2\)"),
        ("2x1", (6, 3, 3), (5, 2, 1), r"output 4, input 2 at kernel position \(1\) has 1 of 2"),
        ("1x4", (6, 8), (5, 6), "output 5, input 4 has [13] of 4"),
    ],
)
def test_check_names_the_place(name, shape, flip, place):
    pattern = parse_pattern(name)
    mask = pattern.random(shape, pattern.count(shape, 0.5), torch.Generator().manual_seed(0))
    pattern.check(mask)
    mask[flip] = ~mask[flip]
    assert int((~pattern.matches(mask)).sum()) == 1
    with pytest.raises(SparsifyError, match=place):
        pattern.check(mask)


@pytest.mark.parametrize(
    ("name", "shape", "groups", "reason"),
    [
        ("2:4", (8, 3, 3, 3), 1, "3 inputs are no multiple of 4"),
        ("4x1", (6, 8), 1, "6 outputs are no multiple of 4"),
        ("4x1", (8, 2, 3, 3), 4, "2 outputs of each convolution group are no multiple of 4"),
        ("2:4", (8, 2, 3, 3), 4, "2 inputs of each convolution group"),
        ("2x1", (8,), 1, "no inputs and outputs"),
    ],
)
def test_shapes_are_refused_with_the_reason(name, shape, groups, reason):
    assert reason in parse_pattern(name).refusal(shape, groups)


def test_masks_are_not_made_at_shapes_and_counts_that_the_pattern_cannot_have():
    with pytest.raises(SparsifyError, match="3 inputs are no multiple of 4"):
        parse_pattern("2:4").random((4, 3), 6)
    for name, nnz in (("fan-in", 7), ("2:4", 5), ("2x2", 6)):
        with pytest.raises(SparsifyError, match=f"cannot have {nnz} entries"):
            parse_pattern(name).mask_from_scores(torch.rand(4, 4), nnz)


def test_check_refuses_what_is_no_mask():
    with pytest.raises(SparsifyError, match="bool"):
        parse_pattern("unstructured").check(torch.ones(2, 2))


@pytest.mark.parametrize("text", ["", "Unstructured", "2:", "x4", "blocks"])
def test_unknown_patterns_are_refused(text):
    with pytest.raises(UserError, match="unknown pattern"):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4", "0x4", "4x0"])
def test_numbers_that_make_no_pattern_are_refused(text):
    with pytest.raises(UserError, match=text):
        parse_pattern(text)


def test_names_can_be_read_again():
    for name in SHAPES:
        assert parse_pattern(name).name == name
        assert parse_pattern(name) == parse_pattern(name)
