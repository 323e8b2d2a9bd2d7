"""What holds for the whole run."""

from __future__ import annotations

import pytest

from sparsify.runtime import timing


@pytest.fixture(autouse=True, scope="session")
def no_pauses() -> None:
    """Blocks of timed calls follow at once: pauses make times fair, and no test asserts a time."""
    timing.interleave.__kwdefaults__["pause"] = 0.0
