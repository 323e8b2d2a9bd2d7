"""WGSEF: group sparsity by the weighted group sparse envelope, prox_{αλS} after every step.

Source: Refael, Arbel, Huleihel (arXiv 2212.12921). The envelope shrinks the best k groups as weight decay
does, and never leaves fewer than k. At a λ that training stands it leaves more than k: hence the controller
and the hard finish, which are not of the paper.
"""

from __future__ import annotations

from torch import Tensor

from sparsify.dst.envelope import envelope_factors
from sparsify.dst.group_training import GroupPenalty


class WGSEF(GroupPenalty):
    """Structured sparsity by the group sparse envelope; the loop around it stays as it is.

        algorithm = WGSEF(model, optimizer, groups="filters", keep=0.5, example=images, total_steps=steps)
        for inputs, targets in batches:
            ...  # forward, backward, clipping, optimizer.step(), as ever
        small = sparsify.narrow(model, (images,))

    Arguments and phases: `GroupPenalty`.
    """

    def factors(self, norms: Tensor, strength: Tensor, weights: Tensor, k: int) -> Tensor:
        """u_j / (αλd_j + u_j), see `envelope.envelope_factors`."""
        return envelope_factors(norms, k, strength, weights=weights)

    def felt(self, norms: Tensor, rates: Tensor, weights: Tensor) -> float:
        """With k shared by the groups that are left, a group shrinks by half where αλd is its share."""
        return min(1.0, self.k / norms.numel()) / float((rates * weights).median())
