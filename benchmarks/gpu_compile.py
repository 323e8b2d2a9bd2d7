"""Compiles every GPU kernel for every target, without a GPU, and keeps what the compiler says of each.

    python -m benchmarks.gpu_compile [--output docs/results/gpu] [--targets 80,89,90,100] [--only csr]
    python -m benchmarks.gpu_compile --page

Registers, spills and stack come from ptxas' own log of the very compilation, shared memory from Triton's
record of how the kernel is launched. Every configuration that could be chosen is compiled. Writes
OUTPUT/compiled.json and the tables of OUTPUT.md; `--page` writes the tables from the kept figures. Takes a
quarter of an hour, less where programs did not change since.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton

from benchmarks.gpu_kernels import TARGETS, compiled, identity, launches, packed_layer
from benchmarks.gpu_page import refresh_page
from sparsify.runtime.triton.launch import Launch

ROWS, COLUMNS, DENSITY = 4096, 512, 0.125
_SMALL_AND_LARGE = (("forward", 16), ("forward", 256))
_GRADIENTS = (("input_gradient", 256), ("weight_gradient", 256))
_GATHERED = (("forward", 1), *_SMALL_AND_LARGE)
CASES = {
    "csr": {"float16": (*_GATHERED, *_GRADIENTS), "float32": _GATHERED},
    "condensed": {"float16": (*_GATHERED, *_GRADIENTS), "float32": _GATHERED},
    "blocks-16x16": {"float16": (*_SMALL_AND_LARGE, *_GRADIENTS)},
    "blocks-32x32": {"float16": _SMALL_AND_LARGE},
    "blocks-64x64": {
        "float16": (*_SMALL_AND_LARGE, *_GRADIENTS),
        "bfloat16": _SMALL_AND_LARGE[1:],
        "tf32": (*_SMALL_AND_LARGE, *_GRADIENTS),
        "float32": (*_SMALL_AND_LARGE[1:], *_GRADIENTS),
    },
    "nm-2:4": {
        "float16": (*_SMALL_AND_LARGE, *_GRADIENTS),
        "tf32": (*_SMALL_AND_LARGE[1:], *_GRADIENTS),
        "float32": (*_SMALL_AND_LARGE[1:], *_GRADIENTS),
    },
}
"""Operations and batches by layout and type."""


def cases(only: str) -> Iterator[tuple[dict[str, Any], Launch]]:
    """What is to be compiled, each program once: how a record describes it, and a launch of it."""
    seen: set[str] = set()
    for layout, kinds in CASES.items():
        for kind, operations in kinds.items() if only in layout else ():
            packed = packed_layer(layout, ROWS, COLUMNS, DENSITY, kind)
            for operation, batch in operations:
                for launch in launches(packed, operation, batch, kind):
                    program = identity(launch)
                    if program not in seen:
                        seen.add(program)
                        what = {"kernel": launch.name, "layout": layout, "type": kind, "operation": operation}
                        yield (
                            what | {"batch": batch, "config": launch.config.name, "program": program},
                            launch,
                        )


def compile_all(targets: tuple[int, ...], only: str, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One record a kernel, configuration, type and target; what `known` has is not compiled again."""
    kept = {(record["program"], record["target"]): record for record in known}
    for what, launch in cases(only):
        for target in targets:
            name = f"sm_{target}"
            record = kept.get((what["program"], name))
            yield record or {**what, "target": name, **asdict(compiled(launch, target))}


def write(path: Path, document: dict[str, Any]) -> None:
    """Writes one record a line, so that a change shows where it is; half a run is kept too."""
    records = ",\n".join(json.dumps(record, ensure_ascii=False) for record in document["kernels"])
    head = json.dumps({name: value for name, value in document.items() if name != "kernels"})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head[:-1]}, "kernels": [\n{records}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results/gpu"))
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    parser.add_argument("--only", default="", help="layouts whose names contain this")
    parser.add_argument("--page", action="store_true", help="compile nothing")
    options = parser.parse_args()
    kept = options.output / "compiled.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if not options.page:
        same = known.get("kernels", []) if known.get("triton") == triton.__version__ else []
        layer = {"rows": ROWS, "columns": COLUMNS, "density": DENSITY}
        records: list[dict[str, Any]] = []
        known = {"triton": triton.__version__, "layer": layer, "kernels": records}
        for record in compile_all(tuple(map(int, options.targets.split(","))), options.only, same):
            records.append(record)
            print(json.dumps(record), file=sys.stderr)
            write(kept, known)
    refresh_page(options.output.with_suffix(".md"), known)


if __name__ == "__main__":
    main()
