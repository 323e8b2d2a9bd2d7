"""Masks beside parameters: where they live, and the gradient hook that keeps them in force.

A mask is a persistent bool buffer `<leaf>_mask` on the module that owns the parameter `<leaf>`. The weight
itself stays a plain parameter with zeros, so the forward pass costs nothing and needs no new layer class.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from sparsify.errors import SparsifyError, UserError

SUFFIX = "_mask"
_MARK = "_sparsify_inside"
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class GradientMask:
    """The gradient hook of one masked parameter.

    Autograd calls it with the complete gradient of one backward pass, before clipping and before the gradient
    is added to `.grad`. It returns the gradient times the mask, and first hands the dense gradient to the
    `collector`, where one is set.

    Attributes:
        collector: Called with the dense gradient of every backward pass; it may keep it, but not change it.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        # The mask is looked up at every call, because `Module.to` replaces buffers. The owner is held weakly,
        # because it holds the parameter, which holds this hook; the parameter may outlive it.
        self._owner = weakref.ref(owner)
        self._name = name
        self._mask = _mask_of(owner, name)
        self.collector: Callable[[Tensor], None] | None = None

    def __call__(self, grad: Tensor) -> Tensor:
        """Returns the gradient with zeros outside the mask."""
        if self.collector is not None:
            self.collector(grad)
        if getattr(grad, _MARK, None) == grad._version:
            return grad
        owner = self._owner()
        if owner is not None:
            self._mask = _mask_of(owner, self._name)
        return _inside(grad, self._mask)

    def guards(self, owner: nn.Module, name: str) -> bool:
        """Whether this hook follows the mask of that parameter of that module."""
        return self._owner() is owner and self._name == name


@dataclass(frozen=True)
class MaskedParameter:
    """A parameter and its mask.

    Attributes:
        fqn: Path of the parameter in the model, e.g. `layers.0.fc.weight`.
        param: The parameter.
        owner: The module that holds both.
        name: Name of the parameter in its owner.
    """

    fqn: str
    param: nn.Parameter
    owner: nn.Module
    name: str

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the parameter's shape: the buffer itself, not a copy."""
        return _mask_of(self.owner, self.name)

    @property
    def density(self) -> float:
        """Share of active entries, counted from the mask."""
        return int(torch.count_nonzero(self.mask)) / self.mask.numel()


_HOOKS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def set_mask(owner: nn.Module, name: str, mask: Tensor) -> None:
    """Gives the parameter `name` of `owner` a mask, or replaces the one it has.

    The weight is zeroed outside the mask and the gradient hook is attached.

    Args:
        owner: Module that holds the parameter directly.
        name: Name of the parameter in `owner`, e.g. `weight`.
        mask: Bool tensor of the parameter's shape; copied.

    Raises:
        UserError: When there is no such parameter, or the mask's shape or dtype does not fit it.
    """
    param = owner._parameters.get(name)
    if param is None:
        raise UserError(f"{type(owner).__name__} has no parameter '{name}' to mask")
    if mask.dtype != torch.bool or mask.shape != param.shape:
        raise UserError(
            f"a mask for '{name}' must be bool of shape {tuple(param.shape)}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    buffer = owner._buffers.get(name + SUFFIX)
    if buffer is None:
        owner.register_buffer(name + SUFFIX, mask.to(param.device, copy=True))
    else:
        buffer.copy_(mask)
    zero_outside(param, _mask_of(owner, name))
    _attach(owner, name, param)


def masked_parameters(model: nn.Module) -> dict[str, MaskedParameter]:
    """All masked parameters of a model by fqn, in module order; tied parameters yield one entry."""
    found: dict[str, MaskedParameter] = {}
    seen: set[int] = set()
    for prefix, owner in model.named_modules():
        for name, param in owner._parameters.items():
            mask = owner._buffers.get(name + SUFFIX)
            if param is None or mask is None or mask.dtype != torch.bool or id(param) in seen:
                continue
            seen.add(id(param))
            fqn = f"{prefix}.{name}" if prefix else name
            found[fqn] = MaskedParameter(fqn, param, owner, name)
    return found


def attach_hooks(model: nn.Module) -> None:
    """Attaches the gradient hook to every masked parameter that lacks it (after deepcopy, after loading)."""
    for entry in masked_parameters(model).values():
        _attach(entry.owner, entry.name, entry.param)


def gradient_mask(param: nn.Parameter) -> GradientMask:
    """The hook attached to a masked parameter.

    Raises:
        SparsifyError: When none is attached.
    """
    if param not in _HOOKS:
        raise SparsifyError("this parameter has no mask hook; call attach_hooks(model) first")
    hook: GradientMask = _HOOKS[param][0]
    return hook


def mark_inside(grad: Tensor) -> None:
    """Marks a gradient as zero outside its mask already, which spares the hook a pass over it.

    Any later write to the tensor takes the mark away: autograd may add another gradient of the parameter.
    """
    setattr(grad, _MARK, grad._version)


def zero_outside(tensor: Tensor, mask: Tensor) -> None:
    """Sets a tensor to zero, in place, wherever the mask is not set."""
    bits = _BITS.get(tensor.element_size())
    with torch.no_grad():
        if bits is None or tensor.is_complex() or tensor.is_meta:
            tensor.masked_fill_(~mask, 0)
        else:
            tensor.view(bits).mul_(mask)


def verify_masks(model: nn.Module) -> None:
    """Checks that every weight outside its mask is zero; weights on the meta device have no values.

    Raises:
        SparsifyError: Naming the parameters where it is not.
    """
    broken = [
        f"{fqn} ({n} weights)"
        for fqn, entry in masked_parameters(model).items()
        if not entry.param.is_meta
        and (n := int(torch.count_nonzero((entry.param.detach() != 0) > entry.mask)))
    ]
    if broken:
        raise SparsifyError(
            f"weights outside the mask are not zero in {', '.join(broken)}: something other than the "
            "optimizer wrote to them (an initialiser, an averaged copy, a loaded state); set the mask again "
            "with masks.set_mask, or zero them"
        )


def _inside(grad: Tensor, mask: Tensor) -> Tensor:
    """The gradient with zeros outside the mask, also where it is not finite: 0 · inf would be NaN.

    Multiplies the bits, read as an integer, by 0 or 1: three times as fast as a fill.
    """
    bits = _BITS.get(grad.element_size())
    if bits is None or type(grad) is not Tensor or grad.requires_grad or grad.is_complex():
        return grad.masked_fill(~mask, 0)
    return (grad.view(bits) * mask).view(grad.dtype)


def _mask_of(owner: nn.Module, name: str) -> Tensor:
    mask = owner._buffers[name + SUFFIX]
    if mask is None:
        raise SparsifyError(f"the mask of '{name}' was removed from its module; set it with masks.set_mask")
    return mask


def _attach(owner: nn.Module, name: str, param: nn.Parameter) -> None:
    if param in _HOOKS:
        hook, handle = _HOOKS[param]
        if hook.guards(owner, name):
            return
        handle.remove()
        del _HOOKS[param]
    hook = GradientMask(owner, name)
    # A frozen parameter refuses hooks, but keeps those it has: it must have one when it is unfrozen.
    frozen = not param.requires_grad
    param.requires_grad_(True)
    _HOOKS[param] = (hook, param.register_hook(hook))  # type: ignore[no-untyped-call]
    param.requires_grad_(not frozen)
