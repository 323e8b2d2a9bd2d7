"""RigL: drop the smallest weights, grow where the dense gradient is largest.

Source: Evci et al., "Rigging the Lottery: Making All Tickets Winners" (arXiv 1911.11134).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn, optim

from sparsify.dst.base import Algorithm
from sparsify.dst.gradients import DenseGradients, finite
from sparsify.dst.schedule import CosineSchedule
from sparsify.dst.update import drop_and_grow
from sparsify.errors import UserError
from sparsify.masks import verify_masks


class RigL(Algorithm):
    """Dynamic sparse training by gradient growth; the loop around it stays as it is.

        algorithm = RigL(model, optimizer, total_steps=steps)
        for inputs, targets in batches:
            ...  # forward, backward, clipping, optimizer.step(), as ever

    Dense gradients are summed over the `window` optimizer steps before an update, all micro-batches included.
    An update that finds a non-finite gradient is put off by one step; a layer without one is left alone.

    Args:
        model: The masked model.
        optimizer: One of torch's elementwise optimizers.
        total_steps: Length of the run in optimizer steps.
        update_every: ΔT, steps between two updates; scale it with 128 / batch size.
        drop_fraction: α, the share of active weights that the first update replaces; it falls as a cosine.
        stop_fraction: Updates end after this share of the run.
        window: Optimizer steps whose dense gradients decide an update, 1 to `update_every`.
        seed: Accepted so that algorithms can be exchanged; RigL draws nothing.

    Raises:
        UserError: When an option is out of range, or the optimizer is unsuitable or has no masked parameter,
            or the model kept its weights and gave its new units no connections.
    """

    grows: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        total_steps: int,
        update_every: int = 100,
        drop_fraction: float = 0.3,
        stop_fraction: float = 0.75,
        window: int = 1,
        seed: int = 0,
    ) -> None:
        if total_steps < 1:
            raise UserError(f"total_steps must be at least 1, got {total_steps}")
        if not 0.0 <= stop_fraction <= 1.0:
            raise UserError(f"stop_fraction must lie in [0, 1], got {stop_fraction}")
        if not 1 <= window <= update_every:
            raise UserError(f"window must lie in [1, update_every = {update_every}], got {window}")
        self.schedule = CosineSchedule(update_every, drop_fraction, stop_fraction * total_steps)
        super().__init__(model, optimizer)
        self.seed = seed
        self.postponed = False
        self._gradients = DenseGradients(self.entries, window)
        self._prepare()

    def after_step(self) -> None:
        """Updates the topology when it is due, and switches the collection of dense gradients."""
        if self.schedule.due(self.step) or self.postponed:
            gradients = self._gradients.sums()
            self.postponed = not finite(gradients)
            if not self.postponed:
                self._update(gradients)
            self._gradients.stop()
        self._prepare()

    def _update(self, gradients: Mapping[str, Tensor]) -> None:
        verify_masks(self.model)
        fraction = self.schedule.fraction(self.step)
        masks: dict[str, Tensor] = {}
        for fqn, gradient in gradients.items():
            entry = self.entries[fqn]
            masks[fqn] = drop_and_grow(entry.param, entry.mask, gradient.abs(), fraction)
        self.apply(masks)

    def _prepare(self) -> None:
        due = self.step + 1 if self.postponed else self.schedule.next_due(self.step)
        self._gradients.prepare(self.step, due)

    def remove(self) -> None:
        """Takes the algorithm's hooks off the optimizer and frees collected gradients."""
        super().remove()
        self._gradients.stop()

    def state_dict(self) -> dict[str, Any]:
        """Adds the put-off update and the dense gradients collected so far."""
        return {
            **super().state_dict(),
            "postponed": self.postponed,
            "collected": self._gradients.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Algorithm.load_state_dict`."""
        super().load_state_dict(state)
        self.postponed = bool(state["postponed"])
        self._gradients.stop()
        self._prepare()
        self._gradients.load_state_dict(state["collected"])
