"""Training: data, loop, checkpoints, and the record of a run."""

from __future__ import annotations

from sparsify.train.adapters import merge_delta
from sparsify.train.data import Arrays, Batch, Data, Windows
from sparsify.train.loop import TrainingDivergedError
from sparsify.train.options import Options
from sparsify.train.sources import load_data
from sparsify.train.tuning import FinetuneResult, finetune

__all__ = [
    "Arrays",
    "Batch",
    "Data",
    "FinetuneResult",
    "Options",
    "TrainingDivergedError",
    "Windows",
    "finetune",
    "load_data",
    "merge_delta",
]
