"""Packed weights in external data: mapped, given back once derived from, and read again when needed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from sparsify.lowering import lower
from sparsify.runtime import Session
from tests.lowering.graphs import model, node

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from Linux's /proc")

OUT, IN = 512, 1024
DENSITY = 0.2


def resident(data: Path) -> int:
    """Bytes of a file that are in this process' memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = line.endswith(f"/{data.name}")
        elif counts and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    rng = np.random.default_rng(0)
    kept = np.repeat(rng.random((IN, OUT // 8)) < DENSITY, 8, axis=1)
    return np.where(kept, rng.standard_normal((IN, OUT)), 0).astype(np.float32)


def opened(folder: Path, weight: np.ndarray, layout: str) -> tuple[Session, Path]:
    """A session on one layer, and its data file."""
    built = model([node("MatMul", ["x", "w"], "y")], {"x": ("n", IN)}, {"y": ("n", OUT)}, {"w": weight})
    onnx.save(built, folder / "plain.onnx")
    report = lower(folder / "plain.onnx", folder / "out.onnx", layout=layout, external_data=True)
    assert report.nodes.sparse == 1
    return Session(folder / "out.onnx", threads=1), folder / report.data_files[0]


def share_after(session: Session, data: Path, weight: np.ndarray, rows: int) -> float:
    """Share of the data file that is in memory after a run, whose result is checked."""
    x = np.random.default_rng(rows).standard_normal((rows, IN)).astype(np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight, rtol=1e-4, atol=1e-3)
    return resident(data) / data.stat().st_size


@pytest.mark.parametrize("layout", ["csr", "blocks-8"])
def test_what_was_derived_from_leaves_memory_and_comes_back_unchanged(tmp_path, weight, layout):
    session, data = opened(tmp_path, weight, layout)
    for rows in (64, 16, 64):
        assert share_after(session, data, weight, rows) < 0.1, f"after {rows} rows"


def test_weights_that_runs_read_themselves_stay(tmp_path, weight, monkeypatch):
    monkeypatch.setenv("SPARSIFY_KERNEL", "scalar")  # few rows in place on every processor
    session, data = opened(tmp_path, weight, "csr")
    assert share_after(session, data, weight, 64) < 0.1
    for rows in (1, 64, 16):
        assert share_after(session, data, weight, rows) > 0.9, f"after {rows} rows"
