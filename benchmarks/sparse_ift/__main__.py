"""Is a wider and sparser model better than the dense one of the same FLOPs?

    python -m benchmarks.sparse_ift [--part wide] [--workers 2] [--dry-run | --report | --quick]

A small ResNet on Fashion-MNIST (Debian's package dataset-fashion-mnist) and a small GPT on bytes of Python's
standard library: the dense base against Sparse-IFT's families, static masks and RigL, with the base's
hyper-parameters and with SμPar's groups, and against dense models of the wider shapes. The FLOPs of every
model are counted and must be the base's. Every finished run is one line of `runs.jsonl` in the output folder;
started again, the study skips what is there. At the end it writes `summary.json`, the plots, and the tables
of docs/results/sparse_ift.md.
"""

from __future__ import annotations

import sys

from benchmarks.sparse_ift.study import FULL, QUICK
from benchmarks.study.command import command

if __name__ == "__main__":
    sys.exit(command("sparse_ift", __doc__, FULL, QUICK))
