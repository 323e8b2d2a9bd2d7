"""What sparse operators share on a CPU: when they run on the native kernels, and how."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as are_functorch_transforms_active
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from sparsify.errors import SparsifyError
from sparsify.masks import gradient_mask
from sparsify.operators import topologies
from sparsify.operators.threads import thread_count
from sparsify.operators.topologies import Cached

Needs = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
_ORDINARY = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether the native kernels are for these."""
    return x.is_cpu and weight.is_cpu and x.dtype is torch.float32 and weight.dtype is torch.float32


def untraced(x: Tensor, weight: Tensor, mask: Tensor) -> bool:
    """Whether these are ordinary tensors that nobody traces or transforms."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or are_functorch_transforms_active():
        return False
    return type(x) in _ORDINARY and type(weight) in _ORDINARY and type(mask) in _ORDINARY


def collected(weight: Tensor) -> bool:
    """Whether a dynamic method collects dense gradients of this parameter just now.

    One that grows where the dense gradient is large asks for all of it in the steps before an update.
    """
    if not isinstance(weight, torch.nn.Parameter):
        return False
    try:
        return gradient_mask(weight).collector is not None
    except SparsifyError:
        return False


def forward(
    cached: Cached, x: Tensor, batch: tuple[int, ...], weight: Tensor, bias: Tensor | None, y: Tensor
) -> Tensor:
    """Writes the output of a layer.

    Args:
        cached: Its plan.
        x: Contiguous input.
        batch: Its sizes, as the plan wants them.
        weight: The dense weight.
        bias: Of each output.
        y: Contiguous output.

    Returns:
        `y`.
    """
    values = topologies.gathered(cached, weight.contiguous())
    start = None if bias is None else bias.contiguous()
    cached.plan.forward(
        x.data_ptr(),
        batch,
        values.data_ptr(),
        None if start is None else start.data_ptr(),
        y.data_ptr(),
        thread_count(),
    )
    return y


def backward(
    cached: Cached,
    x: Tensor,
    batch: tuple[int, ...],
    dy: Tensor,
    weight: Tensor,
    needs: Needs,
    keep: bool,
) -> Gradients:
    """The gradients of a layer, None where they are not needed.

    Args:
        cached: Its plan.
        x: Contiguous input.
        batch: Its sizes, as the plan wants them.
        dy: Contiguous gradient of the output.
        weight: The dense weight.
        needs: Whether the gradients of input, weight and bias are; that of the bias only beside the weight's.
        keep: Whether the memory of the weight's gradient is kept for the next (see `KeptGradient`).
    """
    dx = torch.empty_like(x) if needs[0] else None
    dweight, zeroed = None, False
    if needs[1]:
        dweight, zeroed = cached.gradient.take(weight.shape) if keep else (torch.empty(weight.shape), False)
    dbias = weight.new_empty(weight.shape[0]) if needs[1] and needs[2] else None
    if dx is None and dweight is None:
        return None, None, None
    values = topologies.of_forward(cached, weight.contiguous(), topologies.gathered)
    cached.plan.backward(
        x.data_ptr(),
        batch,
        dy.data_ptr(),
        values.data_ptr(),
        dx=None if dx is None else dx.data_ptr(),
        dweight=None if dweight is None else dweight.data_ptr(),
        dbias=None if dbias is None else dbias.data_ptr(),
        threads=thread_count(),
        zeroed=zeroed,
    )
    if dweight is not None and keep:
        cached.gradient.written(dweight)
    return dx, dweight, dbias


def filled(gradients: Gradients, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same with an empty tensor for each None: operators of a graph return tensors."""
    dx, dweight, dbias = (like.new_empty(0) if gradient is None else gradient for gradient in gradients)
    return dx, dweight, dbias
