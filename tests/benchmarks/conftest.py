"""The scripts of a study import one another as they do when they are run: by the folder that they lie in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "supar"))


@pytest.fixture(scope="module", autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Studies run in this process flush them to zero; the tests after them must not find it so."""
    yield
    torch.set_flush_denormal(False)
