"""RigL: drop the smallest weights, grow where the dense gradient is largest.

Source: Evci et al., "Rigging the Lottery: Making All Tickets Winners" (arXiv 1911.11134).
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn, optim

from sparsify.dst.rewiring import Rewiring
from sparsify.dst.score import GradientGrowth, Growth
from sparsify.errors import UserError
from sparsify.masks import Pattern


class RigL(Rewiring):
    """Dynamic sparse training by gradient growth; the loop around it stays as it is.

        algorithm = RigL(model, optimizer, total_steps=steps)
        for inputs, targets in batches:
            ...  # forward, backward, clipping, optimizer.step(), as ever

    Dense gradients are summed over the `window` optimizer steps before an update, all micro-batches included.
    An update that finds a non-finite gradient is put off by one step; a layer without one is left alone.
    Fan-in and n:m masks drop over the whole layer and grow row by row, or group by group; blocks come and go
    by the sum of their magnitudes.

    Args:
        model: The masked model.
        optimizer: One of torch's elementwise optimizers.
        total_steps: Length of the run in optimizer steps.
        update_every: ΔT, steps between two updates; scale it with 128 / batch size.
        drop_fraction: α, the share of active weights that the first update replaces; it falls as a cosine.
        stop_fraction: Updates end after this share of the run.
        window: Optimizer steps whose dense gradients decide an update, 1 to `update_every`.
        pattern: What the masks look like; by default what the model's plan says.
        seed: Accepted so that algorithms can be exchanged; RigL draws nothing.

    Raises:
        UserError: When an option is out of range, the optimizer is unsuitable or has no masked parameter, a
            mask is not of the pattern, or the model kept its weights and gave its new units no connections.
    """

    by_gradient: ClassVar[bool] = True

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
        pattern: str | Pattern | None = None,
        seed: int = 0,
    ) -> None:
        if not 1 <= window <= update_every:
            raise UserError(f"window must lie in [1, update_every = {update_every}], got {window}")
        self.window = window
        super().__init__(
            model,
            optimizer,
            total_steps=total_steps,
            update_every=update_every,
            drop_fraction=drop_fraction,
            stop_fraction=stop_fraction,
            pattern=pattern,
            seed=seed,
        )

    def _growth(self) -> Growth:
        return GradientGrowth(self.entries, self.window)
