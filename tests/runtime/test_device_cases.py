"""The cases for GPUs, run on the CPU: they fit the operators, and they notice what is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sparsify.runtime import Session, layouts
from tests.gpu.ort_cases import BATCHES, DTYPES, SHAPES, conv_cases, linear_cases, run_bound


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_cases_hold_on_the_cpu(layout: str):
    for dtype in DTYPES[:2] if layout == "blocks-8" else DTYPES[:1]:
        cases = list(linear_cases(layout, dtype))
        assert len(cases) == len(BATCHES) * len(SHAPES)
        for case in cases:
            case.check(Session(case.model).run(case.feeds)["y"])
        for case in conv_cases(layout, dtype):
            case.check(Session(case.model).run(case.feeds)["y"])


def test_a_case_that_is_bound_to_memory_gives_the_same():
    case = next(linear_cases("csr", "float32"))
    case.check(run_bound(case, Session(case.model), "cpu"))


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_case_notices_a_wrong_weight_and_an_output_of_another_row(precision: str):
    for case in list(linear_cases("blocks-16", "float32"))[-3:]:
        got = Session(case.model).run(case.feeds)["y"]
        case.check(got, precision)
        with pytest.raises(AssertionError):
            case.check(np.roll(got, 1, axis=0), precision)
        changed = dataclasses.replace(case, x=case.x * np.float32(1.1))
        with pytest.raises(AssertionError):
            changed.check(got, precision)
