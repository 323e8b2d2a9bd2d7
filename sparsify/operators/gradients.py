"""The memory of a weight's gradient, kept from one step to the next.

Of the dense gradient only the active positions are ever other than zero. A fresh tensor must be written as a
whole, and for large models the system must clear its pages first. Memory that still holds the zeros of the
step before needs neither.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeptGradient:
    """A gradient whose memory is used again once nobody else holds it.

    Nobody else does after `optimizer.zero_grad()`, which sets gradients to None. Where somebody still does
    (gradients that are summed over several steps, or a weight that is used twice), the next gradient gets
    memory of its own.

    Every write through torch raises a tensor's version, which its detached twins share: a gradient that was
    clipped is written as a whole again. A write through `.data` raises none. It may scale or add at active
    positions, as old optimizers do; what it leaves outside the mask stays there.
    """

    def __init__(self) -> None:
        self._twin: Tensor | None = None
        self._version = 0

    def take(self, shape: torch.Size) -> tuple[Tensor, bool]:
        """A gradient to write to, and whether it is zero outside the mask already.

        Returns:
            A float32 tensor that the caller gives away, and after it was written, hands to `written`.
        """
        twin = self._twin
        if twin is None or twin.shape != shape or not _alone(twin):
            self._twin = None
            return torch.empty(shape), False
        return twin.detach(), twin._version == self._version

    def written(self, gradient: Tensor) -> None:
        """Keeps the memory of this gradient, which is zero outside the mask now."""
        self._twin = twin = gradient.detach()
        self._version = twin._version


def _alone(tensor: Tensor) -> bool:
    # Two hold its memory then: the tensor, and the storage object that is asked.
    holders: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return holders == 2
