"""The tables of docs/results/gpu.md: ceilings on paper, and what the compiler says."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu_roofline import H100, Layer, bound
from benchmarks.study.document import refresh, table

LAYERS = (
    (Layer(4096, 4096, 0.1), ("csr", "condensed", "blocks-16x16", "blocks-64x64")),
    (Layer(4096, 4096, 0.5), ("nm-2:4", "semi-structured")),
)
BATCHES = (1, 16, 64, 256, 1024, 4096)
KINDS = ("float16", "tf32")
_NAMES = {"nm-2:4": "nm-2:4, expanded in registers", "semi-structured": "2:4, sparse tensor cores"}

_REGISTERS, _SHARED, _WARPS, _PROGRAMS = 65536, 228 << 10, 64, 32


def refresh_page(page: Path, document: dict[str, Any]) -> None:
    """Writes both tables into the page.

    Args:
        page: The Markdown file, with places for the tables `roofline` and `compiled`.
        document: What `gpu_compile` keeps.
    """
    refresh(page, {"roofline": roofline_table(), "compiled": compiled_table(document)})


def roofline_table() -> str:
    """One row a layout, type and batch: bytes, FLOPs, least time, and that of a dense product."""
    head = ("layout", "density", "type", "batch", "MB", "GFLOP", "least µs", "bound by", "dense µs", "ratio")
    return table(head, _roofline_rows())


def _roofline_rows() -> Iterable[list[str]]:
    for layer, layouts in LAYERS:
        for layout in layouts:
            for kind in KINDS if layout != "semi-structured" else KINDS[:1]:
                for batch in BATCHES:
                    least = bound(H100, layer, layout, batch, kind)
                    dense = bound(H100, layer, "dense", batch, kind)
                    shown = kind if layout not in ("csr", "condensed") or kind != "tf32" else "float32"
                    yield [
                        _NAMES.get(layout, layout),
                        f"{layer.density:g}",
                        shown,
                        str(batch),
                        f"{least.size / 1e6:.2f}",
                        f"{least.flops / 1e9:.2f}",
                        f"{least.seconds * 1e6:.2f}",
                        least.by,
                        f"{dense.seconds * 1e6:.2f}",
                        f"{dense.seconds / least.seconds:.2f}",
                    ]


def warps_held(registers: int, shared: int, threads: int) -> int:
    """Warps of a program that one multiprocessor of an H100 holds at a time, of 64 at most.

    Registers are given out 8 a thread at a time; a program takes 1 KB of shared memory besides its own.
    """
    warps = threads // 32
    by_registers = _REGISTERS // (-(-registers // 8) * 8 * threads)
    by_shared = _SHARED // (shared + 1024)
    return warps * min(by_registers, by_shared, _WARPS // warps, _PROGRAMS)


def compiled_table(document: dict[str, Any]) -> str:
    """One row a program: registers and shared bytes on every target."""
    records = document["kernels"]
    targets = sorted({record["target"] for record in records}, key=lambda name: int(name.removeprefix("sm_")))
    rows: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for record in records:
        keys = ("kernel", "layout", "type", "operation", "batch", "config", "threads")
        rows.setdefault(tuple(record[key] for key in keys), {})[record["target"]] = record
    spilling = [record for record in records if record["spill_stores"] or record["spill_loads"]]
    head = (
        "kernel",
        "layout",
        "type",
        "operation",
        "batch",
        "configuration",
        "threads",
        *targets,
        "warps held",
    )
    cells = (
        [*map(str, key), *(_figures(found.get(target)) for target in targets), _held(found.get("sm_90"))]
        for key, found in rows.items()
    )
    return (
        f"{table(head, cells)}\n\n{len(records)} compilations of {len(rows)} programs by Triton "
        f"{document['triton']}; {len(spilling)} of them spill registers."
    )


def _figures(record: dict[str, Any] | None) -> str:
    return "–" if record is None else f"{record['registers']}, {record['shared']}"


def _held(record: dict[str, Any] | None) -> str:
    return (
        "–" if record is None else str(warps_held(record["registers"], record["shared"], record["threads"]))
    )
