"""Group lasso, the baseline of WGSEF: the prox of λ Σ d_j ‖w_j‖ after every step.

Source: Yuan, Lin, "Model selection and estimation in regression with grouped variables" (2006). It has the
same controller and the same hard finish as WGSEF, so that the two differ in the penalty alone.
"""

from __future__ import annotations

from torch import Tensor

from sparsify.dst.envelope import lasso_factors
from sparsify.dst.group_training import GroupPenalty


class GroupLasso(GroupPenalty):
    """Structured sparsity by group lasso; arguments and phases as in `GroupPenalty`.

    It shrinks the best groups as much as the others. A step that would leave fewer than k is not taken: the
    hard finish comes in its place.
    """

    def factors(self, norms: Tensor, strength: Tensor, weights: Tensor, k: int) -> Tensor:
        """max(0, 1 − αλd_j/n_j), see `envelope.lasso_factors`."""
        return lasso_factors(norms, strength, weights=weights)

    def felt(self, norms: Tensor, rates: Tensor, weights: Tensor) -> float:
        """A group is gone after one step where αλd is its norm."""
        return float((norms / (rates * weights)).median())
