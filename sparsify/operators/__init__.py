"""Real sparse training in PyTorch: masked layers that run on the native kernels, or on Triton's on a GPU."""

from __future__ import annotations

from sparsify.operators.conv import sparse_conv2d
from sparsify.operators.decisions import Decision
from sparsify.operators.layer import SparseConv2d, SparseLinear
from sparsify.operators.linear import sparse_linear
from sparsify.operators.swap import accelerate, acceleration_report, decelerate

__all__ = [
    "Decision",
    "SparseConv2d",
    "SparseLinear",
    "accelerate",
    "acceleration_report",
    "decelerate",
    "sparse_conv2d",
    "sparse_linear",
]
