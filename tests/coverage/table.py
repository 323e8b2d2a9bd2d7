"""The coverage table: models × families × sparsities × scopes, and which of them run by default."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fnmatch import fnmatch

from tests.coverage import language_rows, vision_rows, written_rows
from tests.coverage.rows import Row

NAMED: tuple[Row, ...] = (*written_rows.ROWS, *vision_rows.NAMED, *language_rows.NAMED)
MORE: tuple[Row, ...] = (*vision_rows.MORE, *language_rows.MORE)
FAMILIES = ("wide", "parallel", "factorized", "doped")
SPARSITIES = (0.5, 0.75, 0.9)
SCOPES = ("all", "inner")
EVERYTHING = os.environ.get("SPARSIFY_COVERAGE") == "all"
"""Whether the whole table runs: `make test-coverage`. Otherwise each named row runs one combination."""


@dataclass(frozen=True)
class Combination:
    """What one row is planned with."""

    row: Row
    family: str
    sparsity: float
    scope: str

    def __str__(self) -> str:
        return f"{self.row.name}-{self.family}-{self.sparsity:g}-{self.scope}"

    @property
    def nothing(self) -> bool:
        """Whether the row says that nothing can be transformed this way."""
        return any(fnmatch(f"{self.family}/{self.scope}", pattern) for pattern in self.row.nothing)

    @property
    def options(self) -> dict[str, object]:
        """Options of `plan`."""
        return {"family": self.family, "sparsity": self.sparsity, "scope": self.scope}


_PATTERN = [(family, sparsity, scope) for sparsity in SPARSITIES for scope in SCOPES for family in FAMILIES]


_LIKE_OTHERS = ("mobilenet-v1", "mobilevit", "deit", "distilbert", "qwen2", "mistral", "resnet-bottleneck")
"""Named rows that only run in the whole table: large, or of the structure of another row."""


def combinations() -> list[Combination]:
    """All combinations row by row, or by default one of them for each named row, in turn."""
    if EVERYTHING:
        return [Combination(row, *pattern) for row in (*NAMED, *MORE) for pattern in _PATTERN]
    few = [row for row in NAMED if row.name not in _LIKE_OTHERS]
    return [Combination(row, *_PATTERN[7 * index % len(_PATTERN)]) for index, row in enumerate(few)]


_STORED = ("shufflenet", "generator", "recommender", "raw-parameters", "convnext", "bert")
"""Rows whose result is stored, compiled and exported by default: small ones, one or two of each kind."""


def stored() -> list[Combination]:
    """Combinations at the default sparsity for the slow stages: every row and family, or a few small ones."""
    every = [Combination(row, family, 0.75, "all") for row in (*NAMED, *MORE) for family in FAMILIES]
    if EVERYTHING:
        return [one for one in every if not one.nothing]
    few = [one for one in every if one.row.name in _STORED]
    return [one for index, one in enumerate(few) if index % 5 == 0]


def rows(*few: str) -> list[Row]:
    """All rows, or by default those of these names."""
    return [row for row in (*NAMED, *MORE) if EVERYTHING or row.name in few]
