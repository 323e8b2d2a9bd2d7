"""SET: drop the smallest weights, grow at random.

Source: Mocanu et al., "Scalable training of artificial neural networks with adaptive sparse connectivity"
(arXiv 1707.04780); magnitudes and schedule as in google-research/rigl.
"""

from __future__ import annotations

from torch import nn, optim

from sparsify.dst.rewiring import Rewiring
from sparsify.dst.score import Growth, RandomGrowth
from sparsify.masks import Pattern


class SET(Rewiring):
    """Dynamic sparse training by random growth; the loop around it stays as it is.

    Args:
        model: The masked model.
        optimizer: One of torch's elementwise optimizers.
        total_steps: Length of the run in optimizer steps.
        update_every: ΔT, steps between two updates; scale it with 128 / batch size.
        drop_fraction: α, the share of active weights that the first update replaces; it falls as a cosine.
        stop_fraction: Updates end after this share of the run.
        pattern: What the masks look like; by default what the model's plan says.
        seed: Of the draws, which are a function of it, the parameter's name and the step.

    Raises:
        UserError: When an option is out of range, the optimizer is unsuitable or has no masked parameter, or
            a mask is not of the pattern.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        *,
        total_steps: int,
        update_every: int = 100,
        drop_fraction: float = 0.3,
        stop_fraction: float = 0.75,
        pattern: str | Pattern | None = None,
        seed: int = 0,
    ) -> None:
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
        return RandomGrowth(self.entries, self.seed)
