"""The acceptance of the coordinate check: what its page says is what its files hold."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "coord_check.md"
FOLDER = PAGE.with_suffix("")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "coord_check_script", ROOT / "benchmarks" / "coord_check.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_check_of_the_page_came_out(script):
    for name in script.CHECKS:
        result = json.loads((FOLDER / f"{name}.json").read_text())
        assert script.verdict(result) == ("not judged" if name == "resnet" else "yes"), name
        assert (FOLDER / f"{name}.png").is_file()


def test_the_tables_of_the_page_are_those_of_the_files(script, tmp_path):
    page = tmp_path / "page.md"
    shutil.copy(PAGE, page)
    script.report(FOLDER, page)
    assert page.read_text() == PAGE.read_text()
    assert all(check.says in PAGE.read_text() for check in script.CHECKS.values())


def test_a_check_that_fails_says_why(script):
    result = json.loads((FOLDER / "gpt2.json").read_text())
    result["parameterizations"]["supar"]["flat"] = 0.9
    result["parameterizations"]["sp"]["steep"] = 0.4
    result["supar_without_lr"]["last_step"] = 0.1
    assert script.verdict(result) == "SμPar is not flat, SP is not steep, LR rule unnoticed"
