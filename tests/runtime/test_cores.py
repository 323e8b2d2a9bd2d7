"""Threads that operators assume: one a core, as ONNX Runtime makes them, not one a hardware thread."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsify.runtime import library


def counted(folder: Path, processors: list[int]) -> int:
    array = (ctypes.c_int32 * len(processors))(*processors)
    return int(library.load().sparsify_count_cores(str(folder).encode(), array, len(processors)))


def machine(folder: Path, siblings: list[str], name: str = "core_cpus_list") -> Path:
    """A folder that says of each logical processor which share its core."""
    for index, text in enumerate(siblings):
        place = folder / f"cpu{index}" / "topology"
        place.mkdir(parents=True)
        (place / name).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
def test_hardware_threads_of_a_core_are_one(tmp_path, name):
    folder = machine(tmp_path, ["0,4", "1,5", "2,6", "3,7"] * 2, name)
    assert counted(folder, list(range(8))) == 4
    assert counted(folder, [0, 4]) == 1
    assert counted(folder, [0, 1, 5, 6]) == 3


def test_cores_without_siblings_count_each(tmp_path):
    assert counted(machine(tmp_path, ["0", "1", "2"]), [0, 2]) == 2


def test_a_system_that_does_not_tell_is_noticed(tmp_path):
    folder = machine(tmp_path, ["0", ""])
    assert counted(folder, [0, 1]) == 0
    assert counted(folder, [0, 5]) == 0
    assert counted(tmp_path / "missing", [0]) == 0
    assert counted(folder, []) == 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are chosen so on Linux only")
def test_only_cores_count_that_the_process_may_run_on():
    first = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{first}}}); "
        "from sparsify.runtime import library; print(library.available_cores())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == 1
    assert 1 <= library.available_cores() <= len(os.sched_getaffinity(0))
