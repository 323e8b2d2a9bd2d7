"""Do groups chosen by WGSEF train better than those of group lasso, at equal numbers of filters?

    python -m benchmarks.wgsef [--part vgg] [--workers 2] [--dry-run | --report | --quick]

Trains a VGG-like CNN and a small ResNet on Fashion-MNIST (Debian's package dataset-fashion-mnist) dense, with
WGSEF and with group lasso to half and a quarter of their filters, then narrows them and times them in ONNX
Runtime beside the dense model. Every finished run is one line of `runs.jsonl` in the output folder; started
again, the study skips what is there. At the end it writes `summary.json`, the plot, and the tables of
docs/results/wgsef.md.
"""

from __future__ import annotations

import sys

from benchmarks.study.command import command
from benchmarks.wgsef.study import FULL, QUICK

if __name__ == "__main__":
    sys.exit(command("wgsef", __doc__, FULL, QUICK))
