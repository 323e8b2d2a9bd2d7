"""A sparse linear layer inside autograd, with everything that its kernels fuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparsify.runtime.triton import linear
from sparsify.runtime.triton.epilogue import NOTHING, Ending, closed, ending_of
from sparsify.runtime.triton.packed import Packed


def sparse_layer(
    x: Tensor,
    packed: Packed,
    values: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    residual: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """activation(X · Wᵀ + bias + residual), differentiable once in x, values, bias and residual.

    Where no gradient is asked for, one kernel does all of it. Where one is, bias and residual are fused and
    the activation follows by itself, since its slope needs the sums.

    Args:
        x: `[..., in]` of one of `packing.DTYPES`, on the device of the packed weight.
        packed: From `packing.pack`, with gradients where x needs one.
        values: Values in the place of the packed ones, of their shape.
        bias: `[out]`.
        activation: See `linear.forward`.
        residual: `[..., out]`.
        bounds: low and high of `clip`.

    Returns:
        `[..., out]`, contiguous, in the type of `x`.

    Raises:
        UserError: See `linear.forward`.
    """
    ending = ending_of(None, None, activation, bounds)
    differentiable = [tensor for tensor in (x, values, bias, residual) if tensor is not None]
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in differentiable):
        weight = packed if values is None else packed.with_values(values.detach())
        return linear.forward(x, weight, bias, activation, residual=residual, bounds=bounds)
    run: Callable[..., Tensor] = _Layer.apply
    return run(x, values, bias, residual, packed, ending)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        packed: Packed,
        ending: Ending,
    ) -> Tensor:
        weight = packed if values is None else packed.with_values(values.detach())
        sums = linear.forward(x, weight, bias, residual=residual)
        ctx.packed, ctx.ending = weight, ending
        ctx.types = [None if tensor is None else tensor.dtype for tensor in (bias, residual)]
        ctx.save_for_backward(x, None if ending == NOTHING else sums)
        return sums if ending == NOTHING else closed(sums, ending)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, sums = ctx.saved_tensors
        need_x, need_values, need_bias, need_residual = ctx.needs_input_grad[:4]
        slopes = dy if sums is None else _slopes(dy, sums, ctx.ending)
        return (
            linear.input_gradient(slopes, ctx.packed) if need_x else None,
            linear.weight_gradient(x, slopes, ctx.packed) if need_values else None,
            slopes.reshape(-1, slopes.shape[-1]).sum(0).to(ctx.types[0]) if need_bias else None,
            slopes.to(ctx.types[1]) if need_residual else None,
            None,
            None,
        )


def _slopes(dy: Tensor, sums: Tensor, ending: Ending) -> Tensor:
    with torch.enable_grad():
        at = sums.detach().requires_grad_()
        (found,) = torch.autograd.grad(closed(at, ending), at, dy)
    return found
