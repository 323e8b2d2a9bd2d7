"""What SET, RigL, SRigL and SparseMomentum share: at every update some weights go and others come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn, optim

from sparsify.dst.base import Algorithm
from sparsify.dst.revival import Revival
from sparsify.dst.schedule import CosineSchedule
from sparsify.dst.score import Growth
from sparsify.dst.update import exchange
from sparsify.errors import UserError
from sparsify.masks import Pattern, verify_masks


class Rewiring(Algorithm):
    """Drops the smallest weights of every layer and grows as many where the growth score is largest.

    An update that finds a non-finite score is put off by one step; a layer without a gradient is left alone.

    Args:
        model: The masked model.
        optimizer: One of torch's elementwise optimizers.
        total_steps: Length of the run in optimizer steps.
        update_every: ΔT, steps between two updates; scale it with 128 / batch size.
        drop_fraction: α, the share of active weights that the first update replaces; it falls as a cosine.
        stop_fraction: Updates end after this share of the run.
        pattern: What the masks look like; by default what the model's plan says.
        seed: Of random draws.
        floor: What the drop fraction falls to.

    Raises:
        UserError: When an option is out of range, the optimizer is unsuitable or has no masked parameter, or
            a mask is not of the pattern.
    """

    grows: ClassVar[bool] = True
    changes_masks: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        total_steps: int,
        update_every: int,
        drop_fraction: float,
        stop_fraction: float,
        pattern: str | Pattern | None,
        seed: int,
        floor: float = 0.0,
    ) -> None:
        if total_steps < 1:
            raise UserError(f"total_steps must be at least 1, got {total_steps}")
        if not 0.0 <= stop_fraction <= 1.0:
            raise UserError(f"stop_fraction must lie in [0, 1], got {stop_fraction}")
        self.schedule = CosineSchedule(update_every, drop_fraction, stop_fraction * total_steps, floor)
        super().__init__(model, optimizer, pattern=pattern, seed=seed)
        self.postponed = False
        self.growth = self._growth()
        self.revival = Revival(optimizer, self.entries)
        self._prepare()

    @abstractmethod
    def _growth(self) -> Growth:
        """What this algorithm grows by."""

    def after_step(self) -> None:
        """Updates the topology when it is due, and switches the collection of dense gradients."""
        self.growth.advance()
        self.revival.settle()
        if self.schedule.due(self.step) or self.postponed:
            self.postponed = not self.growth.ready()
            if not self.postponed:
                verify_masks(self.model)
                self.apply(self.new_masks(self.schedule.fraction(self.step)))
                self.revival.watch()
            self.growth.stop()
        self._prepare()

    def new_masks(self, fraction: float) -> dict[str, Tensor]:
        """New masks by fqn, of the weights that had a gradient.

        Args:
            fraction: Share of active weights to drop.
        """
        masks: dict[str, Tensor] = {}
        for fqn in self.entries:
            growth = self.growth.score(fqn, self.cells[fqn], self.step)
            if growth is not None:
                masks[fqn] = self.cells[fqn].unfold(self.new_mask(fqn, growth, fraction))
        return masks

    def new_mask(self, fqn: str, growth: Tensor, fraction: float) -> Tensor:
        """The new mask of one weight; growth and result are (cells, units)."""
        return exchange(*self.folded(fqn), growth, fraction)

    def folded(self, fqn: str) -> tuple[Tensor, Tensor]:
        """Magnitude and mask of one weight, as (cells, units)."""
        entry, cells = self.entries[fqn], self.cells[fqn]
        return cells.fold(entry.param.detach().abs()), cells.fold_mask(entry.mask)

    def _prepare(self) -> None:
        due = self.step + 1 if self.postponed else self.schedule.next_due(self.step)
        self.growth.prepare(self.step, due)

    def remove(self) -> None:
        """Takes the algorithm's hooks off the optimizer and frees collected gradients."""
        super().remove()
        self.growth.stop()

    def state_dict(self) -> dict[str, Any]:
        """Adds the put-off update, what was gathered so far for the next one, and `Revival`'s sizes."""
        return {
            **super().state_dict(),
            "postponed": self.postponed,
            "growth": self.growth.state_dict(),
            "revival": self.revival.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Algorithm.load_state_dict`."""
        super().load_state_dict(state)
        self.postponed = bool(state["postponed"])
        self.growth.stop()
        self._prepare()
        self.growth.load_state_dict(state["growth"])
        self.revival.load_state_dict(state["revival"])
