"""Kernels compile without a GPU, and the kept table says what the compiler said."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this system")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled where Triton interprets"
)

from benchmarks.gpu_kernels import TARGETS, compiled, identity, launches, packed_layer, read_log, source  # noqa: E402

TABLE = Path(__file__).parents[3] / "docs/results/gpu/compiled.json"
SHARED = {"sm_80": 163 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}
LOG = (
    "ptxas info    : Function properties for k\n"
    "    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
    "ptxas info    : Used 255 registers, used 1 barriers, 400 bytes cmem[0]\n"
)


@pytest.mark.parametrize(
    ("layout", "operation", "batch", "kind", "target"),
    [
        ("csr", "forward", 1, "float16", 80),
        ("condensed", "weight_gradient", 64, "float32", 100),
        ("blocks-16x16", "forward", 16, "bfloat16", 89),
        ("nm-2:4", "forward", 16, "float16", 90),
    ],
)
def test_kernels_compile_without_a_gpu(
    layout: str, operation: str, batch: int, kind: str, target: int
) -> None:
    packed = packed_layer(layout, 1024, 256, 0.125, kind)
    figures = compiled(launches(packed, operation, batch, kind)[0], target)
    assert 0 < figures.registers <= 255
    assert figures.spill_stores == figures.spill_loads == 0
    assert figures.shared <= SHARED[f"sm_{target}"]


def test_the_log_is_read_to_the_byte() -> None:
    figures = read_log(LOG, shared=16, threads=64)
    assert (figures.registers, figures.stack, figures.spill_stores, figures.spill_loads) == (255, 8, 4, 12)
    for damaged in ("", LOG.replace("registers", "register"), LOG + LOG):
        with pytest.raises(ValueError, match="no figures of one kernel"):
            read_log(damaged, shared=0, threads=32)


def test_programs_are_told_apart_by_constants_alignment_and_config() -> None:
    packed = packed_layer("csr", 64, 64, 0.5, "float32")
    found = launches(packed, "forward", 32, "float32")
    assert len({identity(launch) for launch in found}) == len(found) == 2
    odd = launches(packed, "forward", 33, "float32")
    assert identity(odd[0]) != identity(found[0])
    assert identity(launches(packed, "forward", 48, "float32")[0]) == identity(found[0])
    index = [parameter.name for parameter in found[0].kernel.params].index("batch")
    assert (index,) in source(found[0]).attrs
    assert (index,) not in source(odd[0]).attrs


def test_the_table_has_every_layout_on_every_target_without_spills() -> None:
    records = json.loads(TABLE.read_text())["kernels"]
    seen = {(record["layout"], record["target"]) for record in records}
    assert seen == {
        (layout, f"sm_{target}")
        for layout in ("csr", "condensed", "blocks-16x16", "blocks-32x32", "blocks-64x64", "nm-2:4")
        for target in TARGETS
    }
    assert {record["operation"] for record in records} == {"forward", "input_gradient", "weight_gradient"}
    for record in records:
        assert record["spill_stores"] == record["spill_loads"] == 0, record
        assert record["shared"] <= SHARED[record["target"]], record


def test_nothing_runs_without_a_gpu() -> None:
    from sparsify.errors import UserError
    from sparsify.runtime.triton import linear

    packed = packed_layer("csr", 16, 16, 0.5, "float32")
    with pytest.raises(
        UserError, match="rows_product: tensors on 'cpu', but these kernels run on CUDA devices"
    ):
        linear.forward(torch.zeros(1, 16), packed)
