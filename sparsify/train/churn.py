"""Topology churn: how much of the masks changes while a model trains."""

from __future__ import annotations

import torch
from torch import nn

from sparsify.masks import masked_parameters


class Churn:
    """Compares the masks with those of the last look; costs a copy of the masks, one byte a weight.

    Args:
        model: The masked model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._masks = {fqn: entry.mask.clone() for fqn, entry in masked_parameters(model).items()}

    def look(self) -> float:
        """Share of the active positions that were exchanged since the last look.

        Positions active then or now but not both, over those active then plus those active now: of masks of
        equal size, the share of active weights that are new. A mask that was not there yet counts as full.
        """
        differing, active = 0, 0
        for fqn, entry in masked_parameters(self._model).items():
            now, before = entry.mask, self._masks.get(fqn)
            before = torch.ones_like(now) if before is None else before
            differing += int(torch.count_nonzero(now ^ before))
            active += int(torch.count_nonzero(now)) + int(torch.count_nonzero(before))
            self._masks[fqn] = now.clone()
        return differing / active if active else 0.0
