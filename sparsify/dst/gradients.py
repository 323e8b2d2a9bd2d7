"""Dense gradients of masked parameters, summed over the steps before an update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed

from sparsify.masks import MaskedParameter, gradient_mask


class DenseGradients:
    """Switches the collection of dense gradients, and reads the sums.

    Every backward pass of the window counts, so that micro-batches of gradient accumulation add up.

    Args:
        entries: The masked parameters by fqn.
        window: Optimizer steps to sum over.
    """

    def __init__(self, entries: Mapping[str, MaskedParameter], window: int) -> None:
        self._hooks = {fqn: gradient_mask(entry.param) for fqn, entry in entries.items()}
        self._entries = entries
        self.window = window

    def prepare(self, step: int, due: int | None) -> None:
        """Collects from now on when the step after `step` lies in the window that ends with step `due`."""
        if due is None or step < due - self.window:
            return
        for hook in self._hooks.values():
            if not hook.collecting:
                hook.collect(True)

    def stop(self) -> None:
        """Stops collecting and frees the sums."""
        for hook in self._hooks.values():
            hook.collect(False)

    def sums(self) -> dict[str, Tensor]:
        """Sums by fqn, over all processes where torch.distributed runs; without parameters that had none."""
        shared = distributed.is_available() and distributed.is_initialized()
        found: dict[str, Tensor] = {}
        for fqn, hook in self._hooks.items():
            collected = hook.collected
            if shared:
                # Every process must take part, also one where this parameter had no gradient.
                collected = torch.zeros_like(self._entries[fqn].param) if collected is None else collected
                distributed.all_reduce(collected)
            if collected is not None and bool(collected.any()):
                found[fqn] = collected
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far, by fqn."""
        return {fqn: hook.collected for fqn, hook in self._hooks.items() if hook.collected is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up the sums of an interrupted window; call `prepare` first."""
        for fqn, tensor in state.items():
            self._hooks[fqn].collected = tensor.to(self._entries[fqn].param.device, copy=True)


def finite(gradients: Mapping[str, Tensor]) -> bool:
    """Whether no gradient holds an infinity or a NaN."""
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())
