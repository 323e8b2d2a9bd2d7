"""Tables of the GPU page: bytes as they are packed, ceilings, and recorded timings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this system")

from benchmarks import gpu
from benchmarks.gpu_kernels import packed_layer
from benchmarks.gpu_page import compiled_table, roofline_table, warps_held
from benchmarks.gpu_roofline import H100, Layer, bound, weight_bytes

LAYER = Layer(4096, 4096, 0.1)


@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize("layout", ["csr", "condensed", "blocks-16x16", "blocks-64x64", "nm-2:4"])
def test_bytes_on_paper_are_those_of_a_packed_weight(layout: str, kind: str) -> None:
    packed = packed_layer(layout, 256, 512, 0.25, kind)
    density = packed.values.numel() / (256 * 512)
    assert weight_bytes(Layer(256, 512, density), layout, kind) == pytest.approx(packed.nbytes)


def test_ceilings_by_hand() -> None:
    dense = bound(H100, LAYER, "dense", 1, "float16")
    assert dense.by == "bytes"
    assert dense.seconds == pytest.approx((4096 * 4096 * 2 + 2 * 4096 * 2) / 3.35e12)
    large = bound(H100, LAYER, "dense", 4096, "float16")
    assert large.by == "FLOPs"
    assert large.seconds == pytest.approx(2 * 4096**3 / 989e12)
    gathered = bound(H100, LAYER, "csr", 4096, "float16")
    assert gathered.seconds == pytest.approx(0.1 * 2 * 4096**3 / 67e12)
    half = Layer(4096, 4096, 0.5)
    assert bound(H100, half, "semi-structured", 4096, "float16").seconds == pytest.approx(large.seconds / 2)
    assert bound(H100, half, "nm-2:4", 4096, "float16").seconds == pytest.approx(large.seconds)


def test_roofline_table_shows_where_a_layout_cannot_win() -> None:
    lines = roofline_table().splitlines()
    assert len(lines) == 2 + 6 * (4 * 2 + 2 + 1)
    ratios = {(cells[1], cells[3], cells[4]): float(cells[10]) for cells in map(_cells, lines[2:])}
    assert ratios["csr", "float16", "1"] > 4
    assert ratios["csr", "float16", "4096"] < 1
    assert ratios["blocks-64x64", "float16", "4096"] > 5


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


def test_warps_that_a_multiprocessor_holds() -> None:
    assert warps_held(32, 0, 128) == 64
    assert warps_held(128, 0, 256) == 16
    assert warps_held(32, 100 << 10, 128) == 8
    assert warps_held(16, 0, 32) == 32


def test_compiled_table_counts_spills_and_gaps() -> None:
    record = {"kernel": "k", "layout": "csr", "type": "float16", "operation": "forward", "batch": 1}
    record |= {
        "config": "c",
        "threads": 128,
        "registers": 40,
        "shared": 16,
        "spill_stores": 0,
        "spill_loads": 0,
    }
    records = [{**record, "target": "sm_90"}, {**record, "target": "sm_100", "spill_loads": 8}]
    records.append({**record, "target": "sm_100", "batch": 16})
    text = compiled_table({"triton": "3.0", "kernels": records})
    assert "| sm_90 | sm_100 |" in text
    assert "3 compilations of 2 programs by Triton 3.0; 1 of them spill registers." in text
    assert "| – | 40, 16 | – |" in text


def test_contenders_take_turns_and_failures_are_told() -> None:
    order: list[str] = []
    clock = iter([5.0, 1.0, 3.0, 2.0, 4.0, 9.0])

    def call(name: str):
        return lambda: order.append(name)

    def timer(what) -> float:
        what()
        if order[-1] == "torch bsr":
            raise RuntimeError("no kernel\nfor this")
        return next(clock)

    calls = {name: call(name) for name in ("cuBLAS dense", "torch bsr", "blocks-16x16")}
    measured = gpu.measure(calls, timer, rounds=3)
    assert measured == {"cuBLAS dense": 4.0, "torch bsr": "no kernel", "blocks-16x16": 2.0}
    assert order == ["cuBLAS dense", "torch bsr", "blocks-16x16"] + ["cuBLAS dense", "blocks-16x16"] * 2


def test_recorded_timings_become_a_table() -> None:
    measured = {"cuBLAS dense": 0.02, "csr": 0.004, "cuSPARSE csr": "unsupported"}
    found = gpu.records(LAYER, "csr", 1, "float16", measured, H100)
    assert found[1]["ratio"] == pytest.approx(5)
    least = bound(H100, LAYER, "csr", 1, "float16")
    assert found[1]["bandwidth_share"] == pytest.approx(least.bytes_time / 4e-6)
    page = gpu.document_of("H100", found)
    assert "| csr | 0.1 | 1 | float16 | csr | 4.0 | 5.00× | " in page
    assert "| cuSPARSE csr | unsupported | – | – | – |" in page
    unknown = gpu.records(LAYER, "csr", 1, "float16", measured, None)
    assert "bandwidth_share" not in unknown[1]


def test_a_data_sheet_belongs_to_its_device() -> None:
    assert gpu.known_device("NVIDIA H100 80GB HBM3") is H100
    assert gpu.known_device("NVIDIA H100 PCIe") is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_measuring_refuses_without_a_gpu() -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("no CUDA device")
    assert done.stdout == ""
