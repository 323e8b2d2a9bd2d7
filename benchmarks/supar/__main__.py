"""Does SμPar keep the tuned learning rate where it is, while the density falls?

    python -m benchmarks.supar [--part grid] [--workers 2] [--dry-run | --report | --quick]

Trains small GPTs on bytes of Python's standard library, and a BatchNorm CNN on Fashion-MNIST (Debian's
package dataset-fashion-mnist). Every finished run is one line of `runs.jsonl` in the output folder; started
again, the study skips what is there. At the end it writes `summary.json`, the plots, and the tables of
docs/results/supar.md.
"""

from __future__ import annotations

import sys

from benchmarks.study.command import command
from benchmarks.supar.study import FULL, QUICK

if __name__ == "__main__":
    sys.exit(command("supar", __doc__, FULL, QUICK))
