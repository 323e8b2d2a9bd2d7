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

    Subclasses of the elementwise optimizers are trusted to be elementwise too; a weight that one of them
    moves outside its mask is found at the next update.

    Raises:
        UserError: When the optimizer is not known to be elementwise, or has eps = 0.
    """
    if not isinstance(optimizer, ELEMENTWISE):
        names = ", ".join(kind.__name__ for kind in ELEMENTWISE)
        raise UserError(
            f"{type(optimizer).__name__} is not known to keep masked weights at zero; "
            f"use one of torch's {names}, or a subclass of one"
        )
    if any(group.get("eps", 1.0) == 0 for group in optimizer.param_groups):
        raise UserError("eps = 0 divides zero by zero at inactive weights; give the optimizer a positive eps")


def optimized(optimizer: optim.Optimizer) -> set[int]:
    """The ids of all parameters that the optimizer updates."""
    return {id(param) for group in optimizer.param_groups for param in group["params"]}


def group_of(optimizer: optim.Optimizer, entry: MaskedParameter) -> dict[str, object]:
    """The options under which the optimizer updates a parameter."""
    return next(
        group for group in optimizer.param_groups if any(param is entry.param for param in group["params"])
    )


def slots_of(optimizer: optim.Optimizer, entry: MaskedParameter) -> dict[str, Tensor]:
    """The slots of a parameter (momentum, moments) by name: one number for each weight.

    Raises:
        UserError: When a slot is no single number and not of the parameter's shape.
    """
    slots = {}
    for name, slot in optimizer.state.get(entry.param, {}).items():
        if not isinstance(slot, Tensor) or slot.numel() <= 1 < entry.param.numel():
            continue
        if slot.shape != entry.param.shape:
            raise UserError(
                f"{type(optimizer).__name__} keeps '{name}' of shape {tuple(slot.shape)} for {entry.fqn} of "
                f"shape {tuple(entry.param.shape)}: it mixes weights, so that masked ones do not stay zero; "
                "use an optimizer whose state has the parameter's shape"
            )
        slots[name] = slot
    return slots


def mask_slots(optimizer: optim.Optimizer, entry: MaskedParameter) -> None:
    """Zeroes every slot of a parameter outside its mask.

    Raises:
        UserError: See `slots_of`.
    """
    for slot in slots_of(optimizer, entry).values():
        zero_outside(slot, entry.mask)
