"""Optimizer state of masked parameters.

With masked gradients an elementwise optimizer leaves weights and slots outside the mask at zero by itself, so
they need attention only when a mask changes.
"""

from __future__ import annotations

from torch import Tensor, optim

from sparsify.errors import UserError
from sparsify.masks import MaskedParameter, zero_outside

ELEMENTWISE: tuple[type[optim.Optimizer], ...] = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.NAdam,
    optim.RAdam,
    optim.Adagrad,
    optim.Adadelta,
)


def check_optimizer(optimizer: optim.Optimizer) -> None:
    """Checks that zero gradients keep zero weights at zero under this optimizer.

    Raises:
        UserError: When the optimizer is not known to be elementwise, or has eps = 0.
    """
    if type(optimizer) not in ELEMENTWISE:
        names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise UserError(
            f"{type(optimizer).__name__} is not known to keep masked weights at zero; "
            f"use one of torch's {names}"
        )
    if any(group.get("eps", 1.0) == 0 for group in optimizer.param_groups):
        raise UserError("eps = 0 divides zero by zero at inactive weights; give the optimizer a positive eps")


def optimized(optimizer: optim.Optimizer) -> set[int]:
    """The ids of all parameters that the optimizer updates."""
    return {id(param) for group in optimizer.param_groups for param in group["params"]}


def mask_slots(optimizer: optim.Optimizer, entry: MaskedParameter) -> None:
    """Zeroes every slot of a parameter (momentum, moments) outside its mask."""
    for slot in optimizer.state.get(entry.param, {}).values():
        if isinstance(slot, Tensor) and slot.shape == entry.param.shape:
            zero_outside(slot, entry.mask)
