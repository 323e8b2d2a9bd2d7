"""Static sparse training: the masks stay as they are."""

from __future__ import annotations

from torch import nn, optim

from sparsify.dst.base import Algorithm
from sparsify.errors import UserError
from sparsify.masks import Pattern, verify_masks


class Static(Algorithm):
    """Trains under fixed masks and checks, now and then, that they hold.

    Args:
        model: The masked model.
        optimizer: One of torch's elementwise optimizers.
        total_steps: Length of the run in optimizer steps; the masks are checked once more at its end.
        update_every: Steps between two checks.
        pattern: What the masks look like; by default what the model's plan says.
        seed: Accepted so that algorithms can be exchanged; nothing is drawn.

    Raises:
        UserError: When the optimizer is unsuitable or has no masked parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        total_steps: int,
        update_every: int = 100,
        pattern: str | Pattern | None = None,
        seed: int = 0,
    ) -> None:
        if update_every < 1:
            raise UserError(f"update_every must be at least 1, got {update_every}")
        super().__init__(model, optimizer, pattern=pattern, seed=seed)
        self.total_steps = total_steps
        self.update_every = update_every

    def after_step(self) -> None:
        """Verifies the masks every `update_every` steps."""
        if self.step % self.update_every == 0 or self.step == self.total_steps:
            verify_masks(self.model)
