"""Which pattern a model has, and whether its masks keep to it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsify.errors import SparsifyError
from sparsify.masks import NM, Unstructured, check_patterns, parse_pattern, pattern_of, patterns_of, set_mask


def model(pattern, planned=("0.weight",)):
    """Two masked layers, of which a plan knows some."""
    made = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    set_mask(made[0], "weight", parse_pattern(pattern).random((6, 8), 24))
    set_mask(made[1], "weight", Unstructured().random((4, 6), 5))
    tensors = tuple(SimpleNamespace(fqn=fqn, masked=True) for fqn in planned)
    options, layers = SimpleNamespace(pattern=pattern), (SimpleNamespace(tensors=tensors),)
    made.meta = {"sparsify": SimpleNamespace(plan=SimpleNamespace(options=options, layers=layers))}
    return made


def test_plain_models_are_unstructured():
    assert pattern_of(nn.Linear(2, 2)) == Unstructured()
    assert patterns_of(nn.Linear(2, 2)) == {}


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda made: torch.compile(made, backend="eager")])
def test_the_pattern_is_found_through_wrappers(wrap):
    made = wrap(model("2:4"))
    assert pattern_of(made) == NM(2, 4)
    assert sorted(pattern.name for pattern in patterns_of(made).values()) == ["2:4", "unstructured"]
    check_patterns(made)


def test_a_mask_that_leaves_its_pattern_is_named_with_the_place():
    made = model("2:4")
    mask = made[0].weight_mask.clone()
    row, column = (~mask).nonzero()[0].tolist()
    mask[row, column] = True
    set_mask(made[0], "weight", mask)
    with pytest.raises(SparsifyError, match=rf"0\.weight: .*row {row} has 3 of the 4 entries"):
        check_patterns(made)


def test_an_n_m_mask_on_its_way_has_as_many_in_every_group():
    made = model("1:4")
    check_patterns(made)
    set_mask(made[0], "weight", torch.ones(6, 8, dtype=torch.bool))
    check_patterns(made)
    mask = torch.zeros(6, 8, dtype=torch.bool)
    mask[:, :6] = True
    set_mask(made[0], "weight", mask)
    with pytest.raises(SparsifyError, match="not 3:4"):
        check_patterns(made)
