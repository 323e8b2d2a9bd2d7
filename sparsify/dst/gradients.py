"""Dense gradients of masked parameters, summed over the steps before an update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from sparsify.masks import MaskedParameter, gradient_mask

Decays = tuple[float, float | None]


class _Sums:
    """Sums of one parameter's dense gradients and, where `decays` names a second decay, of their squares."""

    def __init__(self, decays: Decays) -> None:
        self.decays = decays
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.peak = 0.0
        self._borrowed = False

    def __call__(self, grad: Tensor) -> None:
        # Sums in half precision would lose small gradients.
        wide = torch.float32 if grad.dtype.itemsize < 4 else grad.dtype
        if self.first is None:
            # Autograd's own tensor, not a copy: it writes only to what nobody else refers to.
            self.first = grad.detach().to(wide, copy=True) if grad.requires_grad else grad.to(wide)
            self._borrowed = self.first is grad
            self.second = None if self.decays[1] is None else self.first.square()
            return
        self.own()
        self.first.add_(grad.detach())
        if self.second is not None:
            self.second.addcmul_(grad.detach(), grad.detach())

    def own(self) -> None:
        """Before the first sum is written to: another tensor of the model may share a borrowed one."""
        if self._borrowed and self.first is not None:
            self.first = self.first.clone()
        self._borrowed = False

    def advance(self) -> None:
        if self.first is not None and self.decays[0] != 1.0:
            self.own()
            self.first.mul_(self.decays[0])
        if self.second is not None and self.decays[1] is not None:
            self.second.mul_(self.decays[1])


class DenseGradients:
    """Switches the collection of dense gradients, and reads the sums.

    Every backward pass of the window counts, so that micro-batches of gradient accumulation add up. The sums
    exist during the window only: of one weight's size each, one for a plain or decayed sum, two with squares.

    Args:
        entries: The masked parameters by fqn.
        window: Optimizer steps to sum over.
        decays: By fqn, what the sum is multiplied by after every step, and the same for the sum of squares
            (None: no squares). Plain sums by default.
    """

    def __init__(
        self, entries: Mapping[str, MaskedParameter], window: int, decays: Mapping[str, Decays] | None = None
    ) -> None:
        self._hooks = {fqn: gradient_mask(entry.param) for fqn, entry in entries.items()}
        self._entries = entries
        self._decays = decays or dict.fromkeys(entries, (1.0, None))
        self._sums: dict[str, _Sums] = {}
        self.window = window
        self.steps = 0

    @property
    def collecting(self) -> bool:
        """Whether dense gradients are summed up now."""
        return bool(self._sums)

    def prepare(self, step: int, due: int | None) -> None:
        """Collects from now on when the step after `step` lies in the window that ends with step `due`."""
        if due is None or step < due - self.window or self.collecting:
            return
        self.steps = 0
        for fqn, hook in self._hooks.items():
            hook.collector = self._sums[fqn] = _Sums(self._decays[fqn])

    def stop(self) -> None:
        """Stops collecting and frees the sums."""
        for hook in self._hooks.values():
            hook.collector = None
        self._sums = {}

    def advance(self) -> None:
        """Counts an optimizer step; decayed sums shrink."""
        if self.collecting:
            self.steps += 1
            for sums in self._sums.values():
                sums.advance()

    def reduce(self) -> bool:
        """Adds up all processes where torch.distributed runs; whether every sum is finite then."""
        if distributed.is_available() and distributed.is_initialized():
            for fqn, sums in self._sums.items():
                # Every process must take part, also one where this parameter had no gradient.
                if sums.first is None:
                    sums(torch.zeros_like(self._entries[fqn].param))
                sums.own()
                for tensor in (sums.first, sums.second):
                    if tensor is not None:
                        distributed.all_reduce(tensor)
        for sums in self._sums.values():
            sums.peak = 0.0 if sums.first is None else _peak(sums.first)
        squares = [sums.second for sums in self._sums.values() if sums.second is not None]
        peaks = [sums.peak for sums in self._sums.values()] + [_peak(tensor) for tensor in squares]
        return all(math.isfinite(peak) for peak in peaks)

    def sum_of(self, fqn: str) -> Tensor | None:
        """The sum of one parameter after `reduce`, None where it had no gradient or only zeros."""
        sums = self._sums.get(fqn)
        return None if sums is None or sums.peak == 0.0 else sums.first

    def mean_of(self, fqn: str) -> Tensor | None:
        """The decayed sum over the sum of its weights: Adam's m̂."""
        total = self.sum_of(fqn)
        return None if total is None else total / self._weight(self._decays[fqn][0])

    def mean_square_of(self, fqn: str) -> Tensor | None:
        """The decayed sum of squares over the sum of its weights, Adam's v̂; None where none is kept."""
        decay, sums = self._decays[fqn][1], self._sums.get(fqn)
        if decay is None or sums is None or sums.second is None:
            return None
        return sums.second / self._weight(decay)

    def _weight(self, decay: float) -> float:
        return sum(decay**age for age in range(1, self.steps + 1)) or 1.0

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, by fqn, and the steps that they hold."""
        return {
            "steps": self.steps,
            "first": {fqn: sums.first for fqn, sums in self._sums.items() if sums.first is not None},
            "second": {fqn: sums.second for fqn, sums in self._sums.items() if sums.second is not None},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the sums of an interrupted window; call `prepare` first."""
        self.steps = int(state["steps"])
        for name in ("first", "second"):
            for fqn, tensor in state[name].items():
                device = self._entries[fqn].param.device
                setattr(self._sums[fqn], name, tensor.to(device, copy=True))


def _peak(tensor: Tensor) -> float:
    """Largest magnitude; NaN or infinity where there is one."""
    least, most = torch.aminmax(tensor)
    return max(-float(least), float(most))
