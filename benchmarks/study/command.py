"""The command line that all studies share."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study.engine import Study, Training, outstanding
from benchmarks.study.environment import environment, revision
from benchmarks.study.ledger import Ledger, R
from sparsify.errors import SparsifyError

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"


def command(
    name: str,
    description: str | None,
    full: Study[R],
    quick: Study[R],
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs a study as its command line asks.

    Args:
        name: Of its module in `benchmarks`, and of its results.
        description: For `--help`.
        full: The study.
        quick: The same at a toy size.
        arguments: Of the command line; those of this process when None.

    Returns:
        The exit code: 1 when a run failed or the data is missing.
    """
    args = _parser(name, description, full).parse_args(arguments)
    study, stem = (quick, "quick") if args.quick else (full, "runs")
    parts = args.part or list(study.parts)
    ledger = Ledger(study.kind, args.output / f"{stem}.jsonl")
    if args.dry_run:
        print(forecast(study, ledger, parts, args.workers))
        return 0
    failures: dict[Any, BaseException] = {}
    if not args.report:
        training = Training(study, ledger, parts, args.workers, {"revision": revision()})
        try:
            training.run()
        except KeyboardInterrupt:
            return _stop("stopped; started again, the study goes on where it was")
        except BrokenExecutor:
            return _stop("a worker was killed (memory?); started again, the study goes on where it was")
        except SparsifyError as error:
            return _stop(f"error: {error}")
        failures = training.failures
    folder = args.output / "quick" if args.quick else args.output
    document = None if args.quick else args.output.with_suffix(".md")
    written = sys.argv[1:] if arguments is None else arguments
    report(study, ledger, folder, document, shlex.join(["python", "-m", f"benchmarks.{name}", *written]))
    for run, reason in failures.items():
        print(f"failed: {study.label(run)}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def forecast(study: Study[R], ledger: Ledger[R], parts: Sequence[str], workers: int) -> str:
    """How many runs are left of every part, and about how long they take; a line each, and the sum."""
    lines, seen, total = [], set[R](), 0.0
    for part in parts:
        rest = [run for run in outstanding(study, ledger, parts[: parts.index(part) + 1]) if run not in seen]
        seen.update(rest)
        seconds = sum(study.seconds(run) for run in rest)
        total += seconds
        lines.append(f"{part}: {len(rest)} runs, {seconds / 60:.0f} min on one core")
    spread = f", {total / 60 / max(1, workers):.0f} min with {max(1, workers)} workers"
    lines.append(f"all: {len(seen)} runs to do, {total / 60:.0f} min on one core{spread}; {len(ledger)} done")
    return "\n".join(lines)


def report(
    study: Study[R], ledger: Ledger[R], folder: Path, document: Path | None, line: str
) -> dict[str, Any]:
    """Writes plots, the tables of the document if there is one, and `summary.json`; returns the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    present = document if document is not None and document.exists() else None
    found = study.report(ledger, folder, present)
    results = [result for _, result in ledger.items()]
    revisions = Counter(str(result.get("revision")) for result in results)
    summary = {
        "command": line,
        "environment": environment(),
        "study": asdict(study),  # type: ignore[call-overload]
        "runs": len(ledger),
        "revisions_of_runs": dict(revisions),
        "cpu_minutes": round(sum(result.get("cpu_seconds", 0.0) for result in results) / 60, 1),
        "seconds_of_a_run": round(fmean([result["seconds"] for result in results]), 1) if results else None,
        **found,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return summary


def _parser(name: str, description: str | None, study: Study[R]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a toy size, in a minute")
    parser.add_argument(
        "--part", action="append", choices=list(study.parts), help="may be given several times"
    )
    parser.add_argument("--report", action="store_true", help="train nothing; summary, tables and plots only")
    parser.add_argument(
        "--dry-run", action="store_true", help="say how many runs are left and how long they take"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="processes of one thread; 0 trains in this one"
    )
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / name)
    return parser


def _stop(message: str) -> int:
    print(message, file=sys.stderr)
    return 1
