"""The density exponent of SμPar where the topology changes: the full correction is for masks that stay.

With RigL or gradual pruning the best learning rate falls with sparsity under the full correction (Dey et al.,
"Sparse maximal update parameterization", arXiv 2405.15743, limitations): active weights are no random subset.
"""

from __future__ import annotations

import warnings

from torch import nn


def warn_over_corrected(model: nn.Module, method: str) -> None:
    """Warns where a topology will change in a model whose learning rates hold the full correction.

    Args:
        model: Without wrappers.
        method: What to call the method.
    """
    scaling = getattr(getattr(model, "sparsify", None), "scaling", None)
    if scaling is None:
        return
    full = scaling.parameterization == "supar" and scaling.density_exponent == 1.0
    if full and any(tensor.m_rho < 1 and tensor.adam_lr != 1 for tensor in scaling.tensors):
        warnings.warn(
            f"{method} changes the masks of a model that was scaled for static ones (supar with a density "
            "exponent of 1): the learning rate tuned on the dense model is then too large, the more so the "
            "sparser. Transform with a density exponent below 1 (0.5 is a first guess), lower the rate, or "
            "keep the masks static",
            UserWarning,
            stacklevel=5,
        )
