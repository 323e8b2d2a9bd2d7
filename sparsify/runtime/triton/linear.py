"""A sparse linear layer on the GPU: the product and both gradients, whatever the layout.

`forward` is meant for training and serving alike. Sums are float32 (float64 for float64); results
have the type of what is multiplied, gradients of the weight that of the stored values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsify.errors import UserError
from sparsify.runtime.triton import blocks, condensed, csr, nm
from sparsify.runtime.triton.epilogue import NOTHING, ending_of
from sparsify.runtime.triton.packed import NM, Blocks, Condensed, Csr, Gathering, Packed
from sparsify.runtime.triton.packing import DTYPES
from sparsify.runtime.triton.rows import product

_FORWARD: dict[type[Packed], Callable[..., Tensor]] = {
    Csr: csr.forward,
    Condensed: condensed.forward,
    Blocks: blocks.forward,
    NM: nm.forward,
}
_INPUT_GRADIENT: dict[type[Packed], Callable[..., Tensor]] = {
    Blocks: blocks.input_gradient,
    NM: nm.input_gradient,
}
_WEIGHT_GRADIENT: dict[type[Packed], Callable[..., Tensor]] = {
    Csr: csr.weight_gradient,
    Condensed: condensed.weight_gradient,
    Blocks: blocks.weight_gradient,
    NM: nm.weight_gradient,
}


def forward(
    x: Tensor,
    packed: Packed,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    residual: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
) -> Tensor:
    """activation(X · Wᵀ + bias + residual), outside autograd; `layer.sparse_layer` is the same inside.

    Args:
        x: `[..., in]` of one of `packing.DTYPES`, on the device of the packed weight.
        packed: From `packing.pack`.
        bias: `[out]`, of any floating type.
        activation: `relu`, `gelu` (exact), `gelu_tanh`, `silu`, `clip`, or None.
        residual: `[..., out]`, of any floating type.
        bounds: low and high of `clip`.

    Returns:
        `[..., out]`, contiguous, in the type of `x`.

    Raises:
        UserError: A shape, type, device or activation that does not fit.
    """
    rows = _matrix("x", x, packed.shape[1], packed)
    outputs = (*x.shape[:-1], packed.shape[0])
    if bias is not None:
        if tuple(bias.shape) != (packed.shape[0],):
            raise UserError(f"a bias of shape {list(bias.shape)} does not fit {packed.shape[0]} outputs")
        bias = bias.detach().contiguous()
    if residual is not None:
        if tuple(residual.shape) != outputs:
            raise UserError(f"a residual of shape {list(residual.shape)} is not of Y's, {list(outputs)}")
        residual = residual.detach().reshape(-1, packed.shape[0]).contiguous()
    ending = ending_of(bias, residual, activation, bounds)
    if not rows.shape[0]:
        return rows.new_empty(outputs)
    return _FORWARD[type(packed)](rows, packed, ending).reshape(outputs)


def input_gradient(dy: Tensor, packed: Packed) -> Tensor:
    """dY · W.

    Args:
        dy: `[..., out]` of one of `packing.DTYPES`, on the device of the packed weight.
        packed: From `packing.pack`, with gradients.

    Returns:
        `[..., in]`, contiguous, in the type of `dy`.

    Raises:
        UserError: A shape, type or device that does not fit, or a weight packed without gradients.
    """
    rows = _matrix("dy", dy, packed.shape[0], packed)
    inputs = packed.shape[1]
    if not rows.shape[0]:
        dx = rows.new_empty(0, inputs)
    elif isinstance(packed, Gathering):
        if packed.transposed is None:
            raise UserError("this weight was packed for inference: pack it with gradients=True")
        dx = product(rows, packed.transposed, inputs, NOTHING)
    else:
        dx = _INPUT_GRADIENT[type(packed)](rows, packed)
    return dx.reshape(*dy.shape[:-1], inputs)


def weight_gradient(x: Tensor, dy: Tensor, packed: Packed) -> Tensor:
    """dYᵀ · X at the stored positions only; `packed.dense(…)` puts it into a dense tensor.

    Args:
        x: `[..., in]`.
        dy: `[..., out]`, with as many rows.
        packed: From `packing.pack`.

    Returns:
        Of the shape and type of `packed.values`.

    Raises:
        UserError: A shape, type or device that does not fit.
    """
    inputs = _matrix("x", x, packed.shape[1], packed)
    slopes = _matrix("dy", dy, packed.shape[0], packed)
    if inputs.shape[0] != slopes.shape[0]:
        raise UserError(f"x has {inputs.shape[0]} rows and dy {slopes.shape[0]}: they must be of one batch")
    if not inputs.shape[0]:
        return torch.zeros_like(packed.values)
    return _WEIGHT_GRADIENT[type(packed)](inputs, slopes, packed)


def _matrix(name: str, tensor: Tensor, width: int, packed: Packed) -> Tensor:
    """The tensor as a contiguous matrix `[rows, width]`, outside autograd."""
    if tensor.ndim == 0 or tensor.shape[-1] != width or tensor.dtype not in DTYPES:
        raise UserError(
            f"{name} of shape {list(tensor.shape)} and type {tensor.dtype} does not fit a packed weight of "
            f"{list(packed.shape)}: its last extent must be {width}, its type one of "
            f"{', '.join(str(one) for one in DTYPES)}"
        )
    if tensor.device != packed.device:
        raise UserError(
            f"{name} lies on {tensor.device}, the packed weight on {packed.device}: move one of them"
        )
    return tensor.detach().reshape(-1, width).contiguous()
