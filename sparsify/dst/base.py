"""What every sparse training algorithm has in common: it lives in the optimizer's step hooks.

An algorithm puts together ideas that live in files of their own: a schedule (when, how much), a growth score
(dense gradients, a random draw, momentum) and an update (old mask to new mask).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim

from sparsify.dst.cut_off import refuse_cut_off
from sparsify.dst.over_corrected import warn_over_corrected
from sparsify.dst.slots import check_optimizer, mask_slots, optimized
from sparsify.errors import SparsifyError, UserError
from sparsify.masks import MaskedParameter, attach_hooks, masked_parameters, set_mask, verify_masks


class Algorithm(ABC):
    """Keeps a model sparse while an ordinary training loop runs.

    Attributes:
        model: The masked model.
        optimizer: Its optimizer, of which `step` is watched.
        step: Optimizer steps taken since the start.
        changed: Weights activated by the last update that were inactive before it.
        grows: Whether the algorithm activates weights.
    """

    grows: ClassVar[bool] = False

    def __init__(self, model: nn.Module, optimizer: optim.Optimizer) -> None:
        check_optimizer(optimizer)
        if self.grows:
            refuse_cut_off(model, type(self).__name__)
            warn_over_corrected(model, type(self).__name__)
        attach_hooks(model)
        self.model = model
        self.optimizer = optimizer
        self.step = 0
        self.changed = 0
        self._density: float | None = None
        updated = optimized(optimizer)
        self.entries: dict[str, MaskedParameter] = {
            fqn: entry for fqn, entry in masked_parameters(model).items() if id(entry.param) in updated
        }
        if not self.entries:
            raise UserError(
                "no parameter of this optimizer has a mask: transform the model first, and give the "
                "optimizer the parameters of the transformed model"
            )
        verify_masks(model)
        for entry in self.entries.values():
            mask_slots(optimizer, entry)
        self._handle = optimizer.register_step_post_hook(self._after_step)

    @abstractmethod
    def after_step(self) -> None:
        """What the algorithm does once the optimizer has taken step number `self.step`."""

    def _after_step(self, optimizer: optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        self.after_step()

    def apply(self, masks: Mapping[str, Tensor]) -> None:
        """Puts new masks in force: dropped weights and their slots become zero, grown ones start at zero."""
        grown = 0
        for fqn, mask in masks.items():
            entry = self.entries[fqn]
            grown += int(torch.count_nonzero(mask & ~entry.mask))
            set_mask(entry.owner, entry.name, mask)
            mask_slots(self.optimizer, entry)
        self.changed = grown
        self._density = None

    @property
    def density(self) -> float:
        """Share of active entries over all masked parameters."""
        if self._density is None:
            active = sum(int(torch.count_nonzero(entry.mask)) for entry in self.entries.values())
            self._density = active / sum(entry.mask.numel() for entry in self.entries.values())
        return self._density

    def remove(self) -> None:
        """Takes the algorithm's hooks off the optimizer; the masks stay in force."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model's and the optimizer's state."""
        return {"algorithm": type(self).__name__, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what `state_dict` returned; load the model and the optimizer first.

        Raises:
            UserError: When the state is another algorithm's.
            SparsifyError: When the loaded weights do not fit the loaded masks.
        """
        if state.get("algorithm") != type(self).__name__:
            raise UserError(
                f"this state was written by {state.get('algorithm')}, not by {type(self).__name__}; "
                "resume with the method that the run was started with"
            )
        if not isinstance(state.get("step"), int):
            raise SparsifyError("the state of the algorithm has no step number")
        verify_masks(self.model)
        self._density = None
        self.step = state["step"]
