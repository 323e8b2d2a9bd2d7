"""Which way of choosing the active weights trains best, at equal numbers of them?

    python -m benchmarks.topology [--part lenet] [--workers 2] [--dry-run | --report | --quick]

Trains LeNet-300-100 and a small ResNet on Fashion-MNIST (Debian's package dataset-fashion-mnist): dense,
static masks, SET, RigL, SRigL with and without ablation, SparseMomentum, gradual pruning. Every finished run
is one line of `runs.jsonl` in the output folder; started again, the study skips what is there. At the end it
writes `summary.json`, the plot, and the tables of docs/results/topology.md.
"""

from __future__ import annotations

import sys

from benchmarks.study.command import command
from benchmarks.topology.study import FULL, QUICK

if __name__ == "__main__":
    sys.exit(command("topology", __doc__, FULL, QUICK))
