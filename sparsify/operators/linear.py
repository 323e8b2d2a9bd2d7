"""`sparsify::sparse_linear`: x · (weight ∘ mask)ᵀ + bias, and its gradients at the active positions only.

The weight is the dense tensor with its zeros, so an optimizer sees nothing new. Kernels by device and type:
float32 on a CPU runs on the native library, CUDA tensors on Triton's kernels. Everything else (float64 for
gradcheck, 16-bit types on a CPU) runs on torch's dense product, which means the same.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sparsify.operators import native, topologies
from sparsify.operators.differentiable import Geometry, SparseOperator
from sparsify.operators.native import Gradients, Needs


class _Linear(SparseOperator):
    name = "sparse_linear"
    channel = -1

    def output_shape(self, x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Any, ...]:
        return *x.shape[:-1], weight.shape[0]

    def product(
        self, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        if x.is_cuda:
            return _forward_gpu(x, weight, mask, bias)
        if not native.suits(x, weight) or x.shape[-1] != weight.shape[1]:  # torch says what does not fit
            return F.linear(x, weight.masked_fill(~mask, 0), bias)
        rows = _rows(x)
        y = x.new_empty(self.output_shape(x, weight, geometry))
        return native.forward(topologies.native(mask), rows, (rows.shape[0],), weight, bias, y)

    def active_gradients(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        mask: Tensor,
        needs: Needs,
        geometry: Geometry,
        keep: bool,
    ) -> Gradients:
        rows, slopes = _rows(x), _rows(dy)
        if native.suits(x, weight):
            batch = (rows.shape[0],)
            found = native.backward(topologies.native(mask), rows, batch, slopes, weight, needs, keep)
        else:
            run = _gradients_gpu if x.is_cuda else _gradients_dense
            found = run(slopes, rows, weight.contiguous(), mask, needs)
        dx, dweight, dbias = found
        return dx if dx is None or x.dim() == 2 else dx.reshape(x.shape), dweight, dbias

    def dense_gradient(self, dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        return _rows(dy).t() @ _rows(x)


OPERATOR = _Linear()
"""The operator, as torch knows it."""


def sparse_linear(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · (weight ∘ mask)ᵀ + bias through the kernels for sparse weights.

    Differentiable once, in x, weight and bias. The gradient of the weight is zero outside the mask, unless a
    dynamic method collects dense gradients of that parameter just then.

    Args:
        x: `[..., in]`.
        weight: `[out, in]` of the type of `x`.
        mask: Bool `[out, in]`. Plans are kept as long as this very tensor lives and nobody writes to it.
        bias: `[out]`.

    Returns:
        `[..., out]`.
    """
    return OPERATOR(x, weight, mask, bias)


def _rows(x: Tensor) -> Tensor:
    return (x if x.dim() == 2 else x.reshape(-1, x.shape[-1])).contiguous()


def _gradients_dense(dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Needs) -> Gradients:
    need_x, need_weight, _ = needs
    dx = dy @ weight.masked_fill(~mask, 0) if need_x else None
    return dx, (dy.t() @ x).masked_fill_(~mask, 0) if need_weight else None, None


def _forward_gpu(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    from sparsify.runtime.triton import linear

    packed = topologies.refreshed(topologies.on_gpu(mask, weight), weight)
    return linear.forward(x, packed, bias)


def _gradients_gpu(dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Needs) -> Gradients:
    from sparsify.runtime.triton import linear

    need_x, need_weight, _ = needs
    packed: Any = topologies.of_forward(topologies.on_gpu(mask, weight), weight, topologies.refreshed)
    dx = linear.input_gradient(dy, packed) if need_x else None
    return dx, packed.dense(linear.weight_gradient(x, dy, packed)) if need_weight else None, None
