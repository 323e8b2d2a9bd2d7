"""`sparsify::sparse_conv2d`: a convolution with weight ∘ mask, and its gradients at active positions only.

As `sparsify.operators.linear`, with kernels for float32 on a CPU; everything else runs on torch's dense
convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsify.operators import native, topologies
from sparsify.operators.differentiable import Geometry, SparseOperator
from sparsify.operators.native import Gradients, Needs
from sparsify.runtime.training import Pair


class _Conv2d(SparseOperator):
    name = "sparse_conv2d"
    pairs = ("stride", "padding", "dilation")
    channel = 1

    def output_shape(self, x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Any, ...]:
        sides = (
            (x.shape[2 + i] + 2 * padding - dilation * (weight.shape[2 + i] - 1) - 1) // stride + 1
            for i, (stride, padding, dilation) in enumerate(zip(*geometry, strict=True))
        )
        return x.shape[0], weight.shape[0], *sides

    def product(
        self, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        fits = x.dim() == 4 and x.shape[1] == weight.shape[1]
        shape = self.output_shape(x, weight, geometry) if fits else ()
        if not native.suits(x, weight) or not fits or min(shape[2:]) < 1:  # torch says what does not fit
            stride, padding, dilation = geometry
            return F.conv2d(x, weight.masked_fill(~mask, 0), bias, stride, padding, dilation)
        cached = topologies.native_conv(mask, geometry)
        return native.forward(cached, x.contiguous(), _batch(x), weight, bias, x.new_empty(shape))

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
        if native.suits(x, weight):
            cached = topologies.native_conv(mask, geometry)
            images, slopes = x.contiguous(), dy.contiguous()
            return native.backward(cached, images, _batch(x), slopes, weight, needs, keep)
        inside = weight.masked_fill(~mask, 0)
        dx, dweight, _ = _gradients_dense(dy, x, inside, (needs[0], needs[1], False), geometry)
        return dx, None if dweight is None else dweight.masked_fill_(~mask, 0), None

    def dense_gradient(self, dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
        dweight: Tensor = _gradients_dense(dy, x, weight, (False, True, False), geometry)[1]
        return dweight


OPERATOR = _Conv2d()
"""The operator, as torch knows it."""


def sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Tensor:
    """A two-dimensional convolution through the kernels for sparse weights.

    Differentiable once, in x, weight and bias. The gradient of the weight is zero outside the mask, unless a
    dynamic method collects dense gradients of that parameter just then.

    Args:
        x: `[batch, in, height, width]`.
        weight: `[out, in, kernel height, kernel width]` of the type of `x`.
        mask: Bool, shaped like `weight`. Plans are kept as long as this very tensor lives and nobody writes
            to it.
        bias: `[out]`.
        stride: Vertical, horizontal.
        padding: Zeros above and below, left and right.
        dilation: Vertical, horizontal.

    Returns:
        `[batch, out, height, width]`, as `torch.nn.functional.conv2d` has it.
    """
    return OPERATOR(x, weight, mask, bias, (stride, padding, dilation))


def _batch(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


def _gradients_dense(dy: Tensor, x: Tensor, weight: Tensor, needs: Needs, geometry: Geometry) -> Any:
    stride, padding, dilation = geometry
    return torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, needs
    )
