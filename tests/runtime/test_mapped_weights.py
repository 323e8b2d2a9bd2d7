"""Packed weights in external data: mapped, given back once derived from, and read again when needed."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from sparsify.lowering import LowerReport, lower
from sparsify.runtime import Session
from tests.lowering.graphs import model, node, operators, sparse_array

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


def session_on(folder: Path, report: LowerReport) -> tuple[Session, Path]:
    """A session on the lowered file, and its data file, which is on the disk: no page waits to be written."""
    data = folder / report.data_files[0]
    with data.open("rb") as file:
        os.fsync(file.fileno())
    return Session(folder / "out.onnx", threads=1), data


def opened(folder: Path, weight: np.ndarray, layout: str) -> tuple[Session, Path]:
    """A session on one layer, and its data file."""
    built = model([node("MatMul", ["x", "w"], "y")], {"x": ("n", IN)}, {"y": ("n", OUT)}, {"w": weight})
    onnx.save(built, folder / "plain.onnx")
    report = lower(folder / "plain.onnx", folder / "out.onnx", layout=layout, external_data=True)
    assert report.nodes.sparse == 1
    return session_on(folder, report)


def share_after(session: Session, data: Path, weights: Sequence[np.ndarray], rows: int) -> float:
    """Share of the data file that is in memory after a run, whose result is checked."""
    x = np.random.default_rng(rows).standard_normal((rows, IN)).astype(np.float32)
    expected = functools.reduce(np.matmul, weights, x)
    scale = float(np.abs(expected).max())
    np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5 * scale)
    return resident(data) / data.stat().st_size


def two_layers(folder: Path, weight: np.ndarray, layout: str = "csr") -> tuple[Session, Path]:
    """A session on two layers that are one node, and its data file."""
    nodes = [node("MatMul", ["x", "w1"], "h"), node("MatMul", ["h", "w2"], "y")]
    constants = {"w1": weight, "w2": np.ascontiguousarray(weight.T)}
    onnx.save(model(nodes, {"x": ("n", IN)}, {"y": ("n", IN)}, constants), folder / "plain.onnx")
    report = lower(folder / "plain.onnx", folder / "out.onnx", layout=layout, external_data=True)
    assert operators(onnx.load(folder / "out.onnx", load_external_data=False)) == ["SparseFeedForward"]
    return session_on(folder, report)


@pytest.mark.parametrize("layout", ["csr", "blocks-8"])
def test_what_was_derived_from_leaves_memory_and_comes_back_unchanged(tmp_path, weight, layout):
    session, data = opened(tmp_path, weight, layout)
    for rows in (64, 16, 64):
        assert share_after(session, data, [weight], rows) < 0.1, f"after {rows} rows"


def test_weights_that_runs_read_themselves_stay(tmp_path, weight, monkeypatch):
    monkeypatch.setenv("SPARSIFY_KERNEL", "scalar")  # few rows in place on every processor
    session, data = opened(tmp_path, weight, "csr")
    assert share_after(session, data, [weight], 64) < 0.1
    for rows in (1, 64, 16):
        assert share_after(session, data, [weight], rows) > 0.9, f"after {rows} rows"


@pytest.mark.parametrize("layout", ["csr", "blocks-8"])
def test_two_layers_in_one_node_leave_memory_as_well(tmp_path, weight, layout):
    session, data = two_layers(tmp_path, weight, layout)
    for rows in (64, 16, 64):
        assert share_after(session, data, [weight, weight.T], rows) < 0.1, f"after {rows} rows"


def test_two_layers_in_one_node_stay_once_runs_read_them_themselves(tmp_path, weight, monkeypatch):
    monkeypatch.setenv("SPARSIFY_KERNEL", "scalar")
    session, data = two_layers(tmp_path, weight)
    for rows in (1, 64, 16):
        assert share_after(session, data, [weight, weight.T], rows) > 0.9, f"after {rows} rows"


@pytest.mark.parametrize("side", [10, 14])  # maps of 14 are kept as rows
def test_convolutions_in_one_node_leave_memory_as_well(tmp_path, side):
    channels = 192
    constants = {f"w{i}": sparse_array(channels, channels, 3, 3, seed=i) / 20 for i in range(2)}
    nodes = [node("Conv", ["x", "w0"], "h", pads=[1] * 4), node("Conv", ["h", "w1"], "y", pads=[1] * 4)]
    shape = ("n", channels, side, side)
    onnx.save(model(nodes, {"x": shape}, {"y": shape}, constants), tmp_path / "plain.onnx")
    path = tmp_path / "out.onnx"
    report = lower(tmp_path / "plain.onnx", path, layout="csr", external_data=True, chains=True)
    assert operators(onnx.load(path, load_external_data=False)) == ["SparseConvChain"]
    session, data = session_on(tmp_path, report)
    plain = Session(tmp_path / "plain.onnx", threads=1)
    for batch in (2, 1, 3):
        x = np.random.default_rng(batch).standard_normal((batch, *shape[1:])).astype(np.float32)
        expected = plain.run({"x": x})["y"]
        np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)
        share = resident(data) / data.stat().st_size
        assert share < 0.1, f"after {batch} images"
