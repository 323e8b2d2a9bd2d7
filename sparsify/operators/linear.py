"""`sparsify::sparse_linear`: x · (weight ∘ mask)ᵀ + bias, and its gradients at the active positions only.

The weight is the dense tensor with its zeros, so an optimizer sees nothing new. Kernels by device and type:
float32 on a CPU runs on the native library, CUDA tensors on Triton's kernels. Everything else (float64 for
gradcheck, 16-bit types on a CPU) runs on torch's dense product, which means the same.
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
    run: Callable[..., Tensor] = _Eager.apply if native.untraced(x, weight, mask) else _forward
    return run(x, weight, mask, bias)


@torch.library.custom_op("sparsify::sparse_linear", mutates_args=())
def _forward(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    return _product(x, weight, mask, bias)


@torch.library.custom_op("sparsify::sparse_linear_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    return native.filled(_gradients(dy, x, weight, mask, (need_x, need_weight, need_bias), keep=False), x)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    return (
        x.new_empty(x.shape if need_x else 0),
        x.new_empty(weight.shape if need_weight else 0),
        x.new_empty(weight.shape[:1] if need_bias else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _in_graph(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    needs = _needs(ctx)
    found = _backward(dy, *ctx.saved_tensors, list(needs))
    dx, dweight, dbias = (gradient if need else None for gradient, need in zip(found, needs, strict=True))
    return dx, dweight, None, dbias


_forward.register_autograd(_in_graph, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The same without the dispatcher, which takes 0.15 ms for every step of a layer.

    Here gradients belong to autograd and the optimizer, which write to them through torch. So their memory is
    kept; a compiled graph may use it for something else meanwhile.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, mask)
        return _product(x, weight, mask, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        dx, dweight, dbias = _gradients(dy, x, weight, mask, _needs(ctx), keep=True)
        return dx, dweight, None, dbias


def _needs(ctx: Any) -> Needs:
    needs = ctx.needs_input_grad
    return bool(needs[0]), bool(needs[1]), bool(needs[3])


def _product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    if x.is_cuda:
        return _forward_gpu(x, weight, mask, bias)
    if not native.suits(x, weight) or x.shape[-1] != weight.shape[1]:  # torch says what does not fit
        return F.linear(x, weight.masked_fill(~mask, 0), bias)
    rows = _rows(x)
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    return native.forward(topologies.native(mask), rows, (rows.shape[0],), weight, bias, y)


def _gradients(dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Needs, keep: bool) -> Gradients:
    need_x, need_weight, need_bias = needs
    rows, slopes = _rows(x), _rows(dy)
    dense = need_weight and native.collected(weight)
    sparse = (need_x, need_weight and not dense, need_bias)
    if native.suits(x, weight):
        batch = (rows.shape[0],)
        found = native.backward(topologies.native(mask), rows, batch, slopes, weight, sparse, keep)
    else:
        run = _gradients_gpu if x.is_cuda else _gradients_dense
        found = run(slopes, rows, weight.contiguous(), mask, sparse)
    dx, dweight, dbias = found
    if dense:
        dweight = slopes.t() @ rows
    elif dweight is not None:
        mark_inside(dweight)
    if need_bias and dbias is None:
        dbias = slopes.sum(0)
    return dx if dx is None or x.dim() == 2 else dx.reshape(x.shape), dweight, dbias


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
