"""Every model of the table keeps its meaning, its FLOPs and its abilities when it is transformed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsify.errors import BudgetError
from tests.coverage.case import Case, assert_same, check_width, outputs, subject
from tests.coverage.rows import Row
from tests.coverage.table import EVERYTHING, MORE, NAMED, SCOPES, Combination, combinations, rows, stored

INDUCTOR = ("resnet-basic", "bert")


@pytest.mark.parametrize("combination", combinations(), ids=str)
def test_the_transformed_model_keeps_its_flops_runs_and_trains(combination: Combination) -> None:
    of = subject(combination.row)
    assert_same(outputs(of.model, of.example), outputs(of.traced.module, of.example), 1e-6)
    if combination.nothing:
        with pytest.raises(BudgetError, match="nothing to"):
            Case(of, **combination.options)
        return
    case = Case(of, **combination.options)
    named = {(refusal.rule, refusal.fqn) for refusal in case.plan.refusals}
    assert set(combination.row.refused) <= named
    case.check_every_layer_is_accounted_for()
    case.check_counts()
    case.check_flops()
    case.check_runs()
    case.check_state_dict()


@pytest.mark.parametrize("combination", stored(), ids=str)
def test_the_transformed_model_is_stored_compiled_and_exported(
    combination: Combination, tmp_path: Path
) -> None:
    row = combination.row
    case = Case(subject(row), **combination.options)
    case.check_archive(tmp_path)
    case.check_compile("inductor" if EVERYTHING and row.name in INDUCTOR else "aot_eager")
    case.check_onnx(tmp_path)


@pytest.mark.parametrize("width", [1.25, 3.0])
@pytest.mark.parametrize("row", rows("shufflenet", "regnet-x", "gpt2"), ids=lambda row: row.name)
def test_a_width_is_met_or_the_largest_one_is_named(row: Row, width: float) -> None:
    for family in ("wide", "factorized"):
        for scope in SCOPES:
            if not Combination(row, family, 0.75, scope).nothing:
                check_width(subject(row), family=family, width=width, scope=scope)


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in (*NAMED, *MORE)]
    assert len(names) == len(set(names)) > 90
