"""What every sparse training algorithm has in common: it lives in the optimizer's step hooks.

An algorithm puts together ideas that live in files of their own: the pattern of its masks (`cells`), a
schedule (when, how much), amounts (how much in which layer), a growth score (random draw, dense gradients,
momentum) and an update (old mask to new mask).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn, optim

from sparsify.dst.cells import Cells
from sparsify.dst.cut_off import refuse_cut_off
from sparsify.dst.over_corrected import warn_over_corrected
from sparsify.dst.planned import flops_per_weight, plan_of, planned_counts
from sparsify.dst.slots import check_optimizer, mask_slots, optimized
from sparsify.errors import SparsifyError, UserError
from sparsify.masks import (
    MaskedParameter,
    Pattern,
    Unstructured,
    attach_hooks,
    masked_parameters,
    parse_pattern,
    patterns_of,
    set_mask,
    unwrapped,
    verify_masks,
)


class Algorithm(ABC):
    """Keeps a model sparse while an ordinary training loop runs.

    Args:
        model: The masked model; wrappers (torch.compile, DistributedDataParallel) are looked through.
        optimizer: One of torch's elementwise optimizers.
        pattern: What the masks look like; by default what the model's plan says, or unstructured.
        seed: Of random draws.

    Attributes:
        model: The masked model as given.
        optimizer: Its optimizer, of which `step` is watched.
        entries: The masked parameters that the optimizer updates, by fqn in the model without wrappers.
        cells: Their patterns' views.
        step: Optimizer steps taken since the start.
        updates: Topology updates so far.
        changed: Weights activated by the last update that were inactive before it.
        grows: Whether the algorithm activates weights.

    Raises:
        UserError: When the optimizer is unsuitable or has no masked parameter, or a mask is not of the
            pattern.
    """

    grows: ClassVar[bool] = False
    by_gradient: ClassVar[bool] = False
    """Whether it grows where the gradient is large, so that units without connections are out of reach."""
    changes_masks: ClassVar[bool] = False

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        pattern: str | Pattern | None = None,
        seed: int = 0,
    ) -> None:
        check_optimizer(optimizer)
        bare, name = unwrapped(model), type(self).__name__
        if self.by_gradient:
            refuse_cut_off(bare, name)
        if self.changes_masks:
            warn_over_corrected(bare, name)
        attach_hooks(bare)
        self.model = model
        self.optimizer = optimizer
        self.seed = seed
        self.step = self.updates = self.changed = 0
        self._density: float | None = None
        updated = optimized(optimizer)
        self.entries: dict[str, MaskedParameter] = {
            fqn: entry for fqn, entry in masked_parameters(bare).items() if id(entry.param) in updated
        }
        if not self.entries:
            raise UserError(
                "no parameter of this optimizer has a mask: transform the model first, and give the "
                "optimizer the parameters of the transformed model"
            )
        self.cells = self._view(bare, pattern)
        self._check_masks()
        verify_masks(bare)
        for entry in self.entries.values():
            mask_slots(optimizer, entry)
        self._handle = optimizer.register_step_post_hook(self._after_step)

    def _view(self, model: nn.Module, pattern: str | Pattern | None) -> dict[str, Cells]:
        given = parse_pattern(pattern) if isinstance(pattern, str) else pattern
        own = patterns_of(model)
        return {
            fqn: Cells(own[fqn] if given is None else given, tuple(entry.param.shape))
            for fqn, entry in self.entries.items()
        }

    def _check_masks(self) -> None:
        """Checks that every mask is of its pattern."""
        for fqn, cells in self.cells.items():
            entry = self.entries[fqn]
            if isinstance(cells.pattern, Unstructured):
                continue
            reason = cells.pattern.refusal(cells.shape, getattr(entry.owner, "groups", 1))
            if reason is not None:
                raise UserError(f"{fqn} cannot have the pattern {cells.pattern.name}: {reason}")
            self._check_mask(fqn)

    def _check_mask(self, fqn: str) -> None:
        try:
            self.cells[fqn].pattern.check(self.entries[fqn].mask)
        except SparsifyError as error:
            raise UserError(
                f"{fqn}: {error}; transform the model with this pattern, or name the pattern that its masks "
                "have with pattern="
            ) from error

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
        self.updates += 1
        self._density = None

    @property
    def density(self) -> float:
        """Share of active entries over all masked parameters."""
        if self._density is None:
            active = sum(self.counts.values())
            self._density = active / sum(entry.mask.numel() for entry in self.entries.values())
        return self._density

    @property
    def counts(self) -> dict[str, int]:
        """Active weights by fqn."""
        return {fqn: int(torch.count_nonzero(entry.mask)) for fqn, entry in self.entries.items()}

    @property
    def flops(self) -> int | None:
        """FLOPs of the model with its masks as they are now; None for a model without a plan.

        They drift from the plan's where counts move between layers whose weights are used differently often.
        """
        plan = plan_of(self.model)
        if plan is None:
            return None
        planned, counts = planned_counts(self.model, self.entries), self.counts
        costs = flops_per_weight(self.model, self.entries)
        return plan.flops.sparse + round(sum((counts[fqn] - planned[fqn]) * costs[fqn] for fqn in planned))

    def remove(self) -> None:
        """Takes the algorithm's hooks off the optimizer; the masks stay in force."""
        self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the model's and the optimizer's state."""
        return {
            "algorithm": type(self).__name__,
            "step": self.step,
            "updates": self.updates,
            "changed": self.changed,
        }

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
        for name in ("step", "updates", "changed"):
            if not isinstance(state.get(name), int):
                raise SparsifyError(f"the state of the algorithm has no number '{name}'")
        verify_masks(self.model)
        self._density = None
        self.step, self.updates, self.changed = state["step"], state["updates"], state["changed"]
