"""Real sparse training in PyTorch: masked layers that run on the native kernels, or on Triton's on a GPU."""

from __future__ import annotations

from sparsify.operators.decisions import Decision
from sparsify.operators.layer import SparseLinear
from sparsify.operators.linear import sparse_linear
from sparsify.operators.swap import accelerate, acceleration_report, decelerate

__all__ = ["Decision", "SparseLinear", "accelerate", "acceleration_report", "decelerate", "sparse_linear"]
