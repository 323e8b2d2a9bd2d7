"""`sparsify::sparse_conv2d`: a convolution with weight ∘ mask, and its gradients at active positions only.

As `sparsify.operators.linear`, with kernels for float32 on a CPU; everything else runs on torch's dense
convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsify.masks import mark_inside
from sparsify.operators import native, topologies
from sparsify.operators.native import Gradients, Needs
from sparsify.runtime.training import Pair

Geometry = tuple[Pair, Pair, Pair]


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
    geometry = (stride, padding, dilation)
    if native.untraced(x, weight, mask):
        run: Callable[..., Tensor] = _Eager.apply
        return run(x, weight, mask, bias, geometry)
    y: Tensor = _forward(x, weight, mask, bias, *(list(pair) for pair in geometry))
    return y


@torch.library.custom_op("sparsify::sparse_conv2d", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    return _product(x, weight, mask, bias, _geometry(stride, padding, dilation))


@torch.library.custom_op("sparsify::sparse_conv2d_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    needs: list[bool],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    geometry = _geometry(stride, padding, dilation)
    found = _gradients(dy, x, weight, mask, (need_x, need_weight, need_bias), geometry, keep=False)
    return native.filled(found, x)


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    sizes = output_size(x, weight, _geometry(stride, padding, dilation))
    return x.new_empty(x.shape[0], weight.shape[0], *sizes)


@_backward.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    needs: list[bool],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    return (
        x.new_empty(x.shape if need_x else 0),
        x.new_empty(weight.shape if need_weight else 0),
        x.new_empty(weight.shape[:1] if need_bias else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[4:]


def _in_graph(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs = _needs(ctx)
    found = _backward(dy, *ctx.saved_tensors, list(needs), *ctx.geometry)
    dx, dweight, dbias = (gradient if need else None for gradient, need in zip(found, needs, strict=True))
    return dx, dweight, None, dbias, None, None, None


_forward.register_autograd(_in_graph, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The same without the dispatcher, and with the gradient's memory kept: see `linear`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        ctx.geometry = geometry
        return _product(x, weight, mask, bias, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        dx, dweight, dbias = _gradients(dy, x, weight, mask, _needs(ctx), ctx.geometry, keep=True)
        return dx, dweight, None, dbias, None


def output_size(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Any, Any]:
    """Height and width of the output."""
    high, wide = (
        (x.shape[2 + i] + 2 * padding - dilation * (weight.shape[2 + i] - 1) - 1) // stride + 1
        for i, (stride, padding, dilation) in enumerate(zip(*geometry, strict=True))
    )
    return high, wide


def _geometry(stride: list[int], padding: list[int], dilation: list[int]) -> Geometry:
    return (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1])


def _needs(ctx: Any) -> Needs:
    needs = ctx.needs_input_grad
    return bool(needs[0]), bool(needs[1]), bool(needs[3])


def _batch(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


def _product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    fits = x.dim() == 4 and x.shape[1] == weight.shape[1] and min(output_size(x, weight, geometry)) > 0
    if not native.suits(x, weight) or not fits:  # torch says what does not fit
        stride, padding, dilation = geometry
        return F.conv2d(x, weight.masked_fill(~mask, 0), bias, stride, padding, dilation)
    cached = topologies.native_conv(mask, geometry)
    y = x.new_empty(x.shape[0], weight.shape[0], *output_size(x, weight, geometry))
    return native.forward(cached, x.contiguous(), _batch(x), weight, bias, y)


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Needs, geometry: Geometry, keep: bool
) -> Gradients:
    need_x, need_weight, need_bias = needs
    dense = need_weight and native.collected(weight)
    if native.suits(x, weight):
        cached = topologies.native_conv(mask, geometry)
        sparse = (need_x, need_weight and not dense, need_bias)
        images, slopes = x.contiguous(), dy.contiguous()
        found = native.backward(cached, images, _batch(x), slopes, weight, sparse, keep)
    else:
        found = _gradients_dense(dy, x, weight.masked_fill(~mask, 0), (need_x, need_weight, False), geometry)
        if found[1] is not None and not dense:
            found[1].masked_fill_(~mask, 0)
    dx, dweight, dbias = found
    if dense and dweight is None:
        dweight = _gradients_dense(dy, x, weight, (False, True, False), geometry)[1]
    elif dweight is not None and not dense:
        mark_inside(dweight)
    if need_bias and dbias is None:
        dbias = dy.sum((0, 2, 3))
    return dx, dweight, dbias


def _gradients_dense(dy: Tensor, x: Tensor, weight: Tensor, needs: Needs, geometry: Geometry) -> Gradients:
    stride, padding, dilation = geometry
    found: Gradients = torch.ops.aten.convolution_backward(
        dy, x, weight, None, stride, padding, dilation, False, (0, 0), 1, needs
    )
    return found
