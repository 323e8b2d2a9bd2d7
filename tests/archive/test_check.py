from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsify.archive import PickleConsentError, check_archive, load
from sparsify.archive.expressions import check_expression
from sparsify.errors import UserError
from tests.archive.hostile import (
    HOSTILE,
    archive,
    expression,
    opaque_constant,
    pickled_weight,
    rewritten,
    sample_inputs,
)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("honest") / "honest.pt2")


def test_an_archive_of_torch_passes_also_after_it_was_written_again(honest: Path, tmp_path: Path) -> None:
    check_archive(honest)
    copy = rewritten(honest, tmp_path / "copy.pt2", lambda records, marker: None, tmp_path / "marker")
    check_archive(copy)
    x = torch.randn(4, 12)
    assert torch.equal(load(copy)(x), load(honest)(x))


@pytest.mark.parametrize("name", HOSTILE)
def test_an_archive_that_could_run_code_is_refused_before_it_does(
    name: str, honest: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    path = rewritten(honest, tmp_path / "hostile.pt2", HOSTILE[name], marker)
    with pytest.raises(PickleConsentError, match="trust"):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize("edit", [sample_inputs, pickled_weight, opaque_constant, expression])
def test_the_payload_would_run_with_consent(edit: object, honest: Path, tmp_path: Path) -> None:
    """The refusals above refuse something: torch.export.load runs it."""
    marker = tmp_path / "marker"
    path = rewritten(honest, tmp_path / "hostile.pt2", HOSTILE[edit.__name__], marker)
    try:
        load(path, trust_pickle=True)
    except Exception as error:
        assert isinstance(error, (UserError, AttributeError, TypeError))
    assert marker.exists()


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s0 + 1",
        "(s0 + 3)//2",
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s0', integer=True))",
        "FloorDiv(Add(Symbol('s0', integer=True), Integer(-1)), Integer(2))",
        "Pow(Symbol('s0', integer=True), Integer(2))",
    ],
)
def test_integer_arithmetic_passes(text: str) -> None:
    check_expression("here", text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('x')",
        "s0.__class__",
        "[s0 for s0 in (1,)]",
        "lambda: 1",
        "open('x')",
        "Symbol('__import__', integer=True)",
        "Symbol(s0)",
        "sin(s0)",
        "9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "s0 if s0 else 1",
        "'s0'",
        "",
        "s0" * 4000,
        7,
    ],
)
def test_anything_else_does_not(text: object) -> None:
    with pytest.raises(PickleConsentError):
        check_expression("here", text)
