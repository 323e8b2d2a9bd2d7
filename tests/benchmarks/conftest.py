"""What studies leave behind in the process that they run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Studies run in this process flush them to zero; the tests after them must not find it so."""
    yield
    torch.set_flush_denormal(False)
