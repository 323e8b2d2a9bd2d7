"""A machine that is made up."""

from __future__ import annotations

from benchmarks.cpu.machine import Machine

CPU = Machine(
    threads=1,
    peak=100.0,
    loads=5.0,
    vector=64,
    reads=((16 << 10, 300.0), (384 << 10, 100.0), (4 << 20, 20.0), (256 << 20, 10.0)),
    caches={"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20},
    how="made up",
)
