"""The comparison passes rounding and fails everything else."""

from __future__ import annotations

import numpy as np
import pytest

from sparsify.errors import ParityError
from sparsify.lowering.parity import compare

REFERENCE = np.random.default_rng(0).standard_normal((50, 50)).astype(np.float32)


def check(value, reference=REFERENCE):
    return compare({"y": reference}, {"y": value}, what="a against b")


def test_rounding_passes_and_is_reported():
    other = REFERENCE + np.float32(1e-5)
    assert check(other) == pytest.approx(1e-5, rel=0.2)


def test_one_wrong_entry_fails():
    other = REFERENCE.copy()
    other[3, 4] += 0.01
    with pytest.raises(ParityError, match=r"a against b: output 'y' differs by 0\.01"):
        check(other)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_new_non_finite_entry_fails(bad):
    other = REFERENCE.copy()
    other[0, 0] = bad
    with pytest.raises(ParityError, match="not a number"):
        check(other)


def test_equal_non_finite_entries_pass():
    reference = REFERENCE.copy()
    reference[0, :3] = [np.nan, np.inf, -np.inf]
    assert check(reference.copy(), reference) == 0


def test_a_masked_entry_is_no_excuse_for_the_others():
    reference = REFERENCE.copy()
    reference[0, 0] = np.finfo(np.float32).min
    other = reference.copy()
    other[3, 4] += 0.01
    with pytest.raises(ParityError):
        check(other, reference)


def test_nothing_finite_proves_nothing():
    nothing = np.full((3, 3), np.nan, np.float32)
    with pytest.raises(ParityError, match="no finite entry"):
        check(nothing, nothing)


def test_nothing_at_all_proves_nothing():
    with pytest.raises(ParityError, match="no numbers"):
        compare({}, {}, what="a against b")


def test_other_shape_fails():
    with pytest.raises(ParityError, match="shape"):
        check(REFERENCE[:1])


def test_integers_are_compared_exactly():
    labels = np.arange(10)
    assert check(labels, labels) == 0
    with pytest.raises(ParityError, match="1 of 10"):
        check(np.where(labels == 3, 0, labels), labels)
