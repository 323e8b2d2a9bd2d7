"""How fast sparse weights are on this machine: the tables of docs/results/cpu.md.

    python -m benchmarks.cpu [--part linear] [--peer PYTHON] [--tune] [--dry-run | --report | --quick]

Parts: linear (single layers in the layouts of their masks), grid (one layer over sparsities, batch sizes and
threads), resnet50, bert (with dense int8 beside it), small (MobileNetV2, a MiniLM-sized encoder), iso (wide
sparse networks of equal FLOPs beside their dense originals), bytes. All networks have random weights, cut by
magnitude, and every ratio is to ONNX Runtime dense in the same process, in alternating blocks. Every cell is
one line of `cells.jsonl` in the output folder; started again, what is there is not measured again. Exported
networks are made once, in its folder `models`. `--peer` names the Python of an environment with DeepSparse.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

from benchmarks.cpu.cells import FULL, PARTS, QUICK, Cell
from benchmarks.cpu.study import Tables
from benchmarks.study.command import RESULTS, forecast
from benchmarks.study.engine import Training
from benchmarks.study.environment import revision
from benchmarks.study.ledger import Ledger
from sparsify.runtime.environment import environment


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 1 when a cell failed."""
    args = _parser().parse_args(arguments)
    folder: Path = args.output / "quick" if args.quick else args.output
    tables = Tables(
        QUICK if args.quick else FULL,
        args.models or args.output / "models",
        args.peer,
        args.tune,
        scale=0.03 if args.quick else args.scale,
        tiny=args.quick,
    )
    ledger = Ledger(Cell, folder / "cells.jsonl")
    parts = args.part or list(PARTS)
    if args.dry_run:
        print(forecast(tables, ledger, parts, 1))
        return 0
    failures: dict[Any, BaseException] = {}
    if not args.report:
        training = Training(tables, ledger, parts, args.workers, {"revision": revision()})
        try:
            training.run()
        except KeyboardInterrupt:
            return _stop("stopped; started again, it goes on where it was")
        except BrokenExecutor:
            return _stop("the worker was killed (memory?); started again, it goes on where it was")
        failures = training.failures
    folder.mkdir(parents=True, exist_ok=True)
    document = args.output.with_suffix(".md")
    takes_tables = document.exists() and "<!-- table: " in document.read_text(encoding="utf-8")
    found = tables.report(ledger, folder, document if takes_tables and not args.quick else None)
    _summarise(ledger, folder, found)
    for cell, reason in failures.items():
        print(f"failed: {tables.label(cell)}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _summarise(ledger: Ledger[Cell], folder: Path, found: dict[str, Any]) -> None:
    revisions = Counter(str(result.get("revision")) for _, result in ledger.items())
    summary = {
        "command": shlex.join(["python", "-m", "benchmarks.cpu"]),
        "environment": environment(),
        "cells": len(ledger),
        "revisions_of_cells": dict(revisions),
        "minutes": round(sum(result.get("seconds", 0.0) for _, result in ledger.items()) / 60, 1),
        **found,
    }
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="may be given several times")
    parser.add_argument("--peer", metavar="PYTHON", help="Python of an environment that has deepsparse")
    parser.add_argument("--tune", action="store_true", help="choose nodes by measuring, not by estimate")
    parser.add_argument("--quick", action="store_true", help="toys instead of the real sizes")
    parser.add_argument("--report", action="store_true", help="measure nothing; tables and plots only")
    parser.add_argument("--dry-run", action="store_true", help="say how many cells are left, and how long")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all durations")
    parser.add_argument("--workers", type=int, choices=(0, 1), default=1, help="0 measures in this process")
    parser.add_argument("--models", type=Path, help="folder of exported networks")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "cpu")
    return parser


def _stop(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
