from __future__ import annotations

from itertools import pairwise

import pytest

from sparsify.train.schedule import SHAPES, cosine


def test_the_learning_rate_warms_up_and_falls_as_a_cosine():
    rates = [cosine(step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[10:])) and rates[-1] > 0


def test_linear_falls_evenly_and_constant_stays():
    linear = [SHAPES["linear"](step, 110, 10) for step in range(110)]
    assert [a - b for a, b in pairwise(linear[10:])] == pytest.approx([0.01] * 99)
    constant = [SHAPES["constant"](step, 110, 10) for step in range(110)]
    assert constant[10:] == [1.0] * 100
    for shape in SHAPES.values():
        assert [shape(step, 110, 10) for step in range(10)] == pytest.approx(constant[:10])
        assert shape(0, 1, 0) == 1.0
