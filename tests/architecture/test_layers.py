"""The shape of the package: small files, no stray prints, names loaded lazily."""

from __future__ import annotations

from pathlib import Path

import sparsify

PACKAGE = Path(sparsify.__file__).parent


def test_every_public_name_resolves():
    for name in sparsify.__all__:
        assert callable(getattr(sparsify, name))


def test_files_stay_small():
    sizes = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert len(sizes) > 40
    assert {str(path.relative_to(PACKAGE)): size for path, size in sizes.items() if size > 400} == {}
