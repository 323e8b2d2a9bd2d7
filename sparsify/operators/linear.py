"""`sparsify::sparse_linear`: x · (weight ∘ mask)ᵀ + bias, and its gradients at the active positions only.

The weight is the dense tensor with its zeros, so an optimizer sees nothing new. Kernels by device and type:
float32 on a CPU runs on the native library, CUDA tensors on Triton's kernels. Everything else (float64 for
gradcheck, 16-bit types on a CPU) runs on torch's dense product, which means the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _are_functorch_transforms_active as are_functorch_transforms_active
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sparsify.errors import SparsifyError
from sparsify.masks import gradient_mask, mark_inside
from sparsify.operators import topologies
from sparsify.operators.threads import thread_count

Needs = tuple[bool, bool, bool]


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
    run: Callable[..., Tensor] = _Eager.apply if _eager(x, weight, mask) else _forward
    return run(x, weight, mask, bias)


@torch.library.custom_op("sparsify::sparse_linear", mutates_args=())
def _forward(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    return _product(x, weight, mask, bias)


def _product(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    if x.is_cuda:
        return _forward_gpu(x, weight, mask, bias)
    if not _native(x, weight):
        return F.linear(x, weight.masked_fill(~mask, 0), bias)
    rows, weight = x.reshape(-1, x.shape[-1]).contiguous(), weight.contiguous()
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    cached = topologies.native(mask)
    values = topologies.gathered(cached, weight)
    start = None if bias is None else bias.contiguous()
    cached.plan.forward(
        rows.data_ptr(), len(rows), values.data_ptr(), _address(start), y.data_ptr(), thread_count()
    )
    return y


@torch.library.custom_op("sparsify::sparse_linear_backward", mutates_args=())
def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    return _products(dy, x, weight, mask, (need_x, need_weight, need_bias), keep=False)


def _products(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Needs, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    rows, slopes = x.reshape(-1, x.shape[-1]).contiguous(), dy.reshape(-1, dy.shape[-1]).contiguous()
    # A method that grows where the dense gradient is large asks for all of it in the steps before an update.
    dense = need_weight and _collected(weight)
    sparse = (need_x, need_weight and not dense, need_bias)
    if _native(x, weight):
        dx, dweight, dbias = _backward_native(slopes, rows, weight.contiguous(), mask, sparse, keep)
    else:
        run = _backward_gpu if x.is_cuda else _backward_dense
        dx, dweight, dbias = run(slopes, rows, weight.contiguous(), mask, sparse)
    if dense:
        dweight = slopes.t() @ rows
    elif need_weight:
        mark_inside(dweight)
    return dx.reshape(x.shape) if need_x else dx, dweight, dbias


@_forward.register_fake
def _(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    nothing = x.new_empty(0)
    return (
        x.new_empty(x.shape) if need_x else nothing,
        x.new_empty(weight.shape) if need_weight else nothing.clone(),
        x.new_empty(weight.shape[:1]) if need_bias else nothing.clone(),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, mask, _ = inputs
    ctx.save_for_backward(x, weight, mask)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return _of_saved(ctx, dy, _backward)


_forward.register_autograd(_gradients, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """The same without the dispatcher, which takes 0.15 ms for every step of a layer.

    Here gradients belong to autograd and the optimizer, which write to them through torch. So their memory is
    kept; a compiled graph may use it for something else meanwhile.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
        _setup(ctx, (x, weight, mask, bias), x)
        return _product(x, weight, mask, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _of_saved(ctx, dy, partial(_products, keep=True))


def _of_saved(ctx: Any, dy: Tensor, run: Callable[..., Any]) -> tuple[Tensor | None, ...]:
    x, weight, mask = ctx.saved_tensors
    needs = [bool(ctx.needs_input_grad[i]) for i in (0, 1, 3)]
    found = run(dy, x, weight, mask, needs)
    dx, dweight, dbias = (gradient if need else None for gradient, need in zip(found, needs, strict=True))
    return dx, dweight, None, dbias


def _eager(*tensors: Tensor) -> bool:
    """Whether these are ordinary tensors that nobody traces or transforms."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or are_functorch_transforms_active():
        return False
    return all(type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer) for tensor in tensors)


def _native(x: Tensor, weight: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32


def _collected(weight: Tensor) -> bool:
    if not isinstance(weight, torch.nn.Parameter):
        return False
    try:
        return gradient_mask(weight).collector is not None
    except SparsifyError:
        return False


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _backward_native(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Needs, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    dx, dweight, dbias = x.new_empty(x.shape if need_x else 0), x.new_empty(0), x.new_empty(0)
    if need_bias:
        dbias = x.new_empty(weight.shape[:1])
    if need_x or need_weight:
        cached, zeroed = topologies.native(mask), False
        if need_weight:
            dweight, zeroed = (
                cached.gradient.take(weight.shape) if keep else (torch.empty_like(weight), False)
            )
        values = topologies.of_forward(cached, weight, topologies.gathered)
        cached.plan.backward(
            x.data_ptr(),
            len(x),
            dy.data_ptr(),
            values.data_ptr(),
            dx=dx.data_ptr() if need_x else None,
            dweight=dweight.data_ptr() if need_weight else None,
            dbias=dbias.data_ptr() if need_bias and need_weight else None,
            threads=thread_count(),
            zeroed=zeroed,
        )
        if need_weight and keep:
            cached.gradient.written(dweight)
    if need_bias and not need_weight:
        torch.sum(dy, 0, out=dbias)
    return dx, dweight, dbias


def _backward_dense(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias = needs
    nothing = x.new_empty(0)
    return (
        dy @ weight.masked_fill(~mask, 0) if need_x else nothing,
        (dy.t() @ x).masked_fill_(~mask, 0) if need_weight else nothing.clone(),
        dy.sum(0) if need_bias else nothing.clone(),
    )


def _forward_gpu(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    from sparsify.runtime.triton import linear

    packed = topologies.refreshed(topologies.on_gpu(mask, weight), weight)
    return linear.forward(x, packed, bias)


def _backward_gpu(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, needs: Needs
) -> tuple[Tensor, Tensor, Tensor]:
    from sparsify.runtime.triton import linear

    need_x, need_weight, need_bias = needs
    packed: Any = topologies.of_forward(topologies.on_gpu(mask, weight), weight, topologies.refreshed)
    nothing = x.new_empty(0)
    return (
        linear.input_gradient(dy, packed) if need_x else nothing,
        packed.dense(linear.weight_gradient(x, dy, packed)) if need_weight else nothing.clone(),
        dy.sum(0) if need_bias else nothing.clone(),
    )
