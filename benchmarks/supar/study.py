"""Does SμPar keep the tuned learning rate where it is, while the density falls?

    python benchmarks/supar/study.py [--quick] [--part NAME] [--workers 2] [-o docs/results/supar]

Trains small GPTs on bytes of Python's standard library, and a BatchNorm CNN on Fashion-MNIST (Debian's
package dataset-fashion-mnist). Every finished run is one line of `runs.jsonl` in the output folder; started
again, the study skips what is there. At the end it writes `summary.json`, the tables and the plots. `--quick`
runs everything at a toy size in a minute. `--report` writes summary and plots from the runs that are there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from ledger import Ledger, Run
from parts import PARTS, QUICK, Size, missing_runs
from report import write
from training import execute

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "docs" / "results" / "supar"


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


class Study:
    """Runs parts on worker processes until none of them wants another run.

    Args:
        size: How large it is.
        ledger: Finished runs.
        workers: Processes, one thread each; 0 trains in this one.
    """

    def __init__(self, size: Size, ledger: Ledger, workers: int) -> None:
        self.size, self.ledger, self.workers = size, ledger, workers
        self._began = time.monotonic()

    def run(self, part: str | None = None) -> None:
        """Trains all that is missing, of one part or of all; later parts fill the gaps of earlier ones."""
        if self.workers == 0:
            _prepare_worker()
            while run := next(missing_runs(self.size, self.ledger, part), None):
                self.ledger.add(run, execute(run))
                self._say(run)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.workers, context, _prepare_worker) as pool:
            busy: dict[Future[dict[str, Any]], Run] = {}
            while True:
                self._submit(pool, busy, part)
                if not busy:
                    return
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    run = busy.pop(future)
                    self.ledger.add(run, future.result())
                    self._say(run)

    def _submit(
        self, pool: ProcessPoolExecutor, busy: dict[Future[dict[str, Any]], Run], part: str | None
    ) -> None:
        while len(busy) < self.workers:
            taken = set(busy.values())
            missing = missing_runs(self.size, self.ledger, part)
            run = next((run for run in missing if run not in taken), None)
            if run is None:
                return
            busy[pool.submit(execute, run)] = run

    def _say(self, run: Run) -> None:
        cell, minutes = run.cell, (time.monotonic() - self._began) / 60
        print(
            f"{minutes:6.1f} min  {len(self.ledger):4d} runs  {cell.model} {cell.family} {cell.method} "
            f"1/{1 / cell.density:g} {cell.parameterization} γ {cell.gamma:g} σ {cell.sigma:g} "
            f"α {cell.alpha_in:g}/{cell.alpha_out:g} d {cell.width} lr 2^{run.log2_lr} seed {run.seed}: "
            f"{self.ledger.loss(run):.4f}",
            file=sys.stderr,
            flush=True,
        )


def main(arguments: list[str] | None = None) -> None:
    """Runs the study and writes its summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a toy size, in a minute")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--report", action="store_true", help="train nothing; summary, tables and plots only")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    args = parser.parse_args(arguments)
    size = QUICK if args.quick else Size()
    ledger = Ledger(args.output / ("quick.jsonl" if args.quick else "runs.jsonl"))
    if not args.report:
        Study(size, ledger, args.workers).run(args.part)
    document = None if args.quick else args.output.with_suffix(".md")
    write(size, ledger, args.output / "quick" if args.quick else args.output, document, args.part)


if __name__ == "__main__":
    main()
