"""Units that come back from nothing in front of a normalization, where gradients know no measure.

A batch norm divides by √(var + ε). Where all that a unit gives out is constant, because it has no weights or
because its inputs are dead, the gradient of its weights is multiplied by 1/√ε, 316 times for ε = 1e-5. Growth
by gradient then spends everything on such units, and their first step throws weights to a size at which the
choice by magnitude never drops them again. None of the papers meets this: it takes fewer weights than units.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, optim

from sparsify.dst.slots import slots_of
from sparsify.masks import MaskedParameter

SILENT = 1e-4
"""A unit is silent when no active weight has a gradient above this share of its largest."""
FACTOR = 2.0


def bounded(score: Tensor, mask: Tensor) -> Tensor:
    """Growth scores with those of silent units scaled down to the largest score of the other units.

    Args:
        score: Magnitudes of dense gradients (units, ...); a vector is left alone.
        mask: Of the same shape.

    Returns:
        `score` itself where no silent unit is above all others.
    """
    if score.dim() < 2:
        return score
    rows = score.flatten(1)
    largest = rows.amax(1)
    strongest = int(largest.argmax())
    if bool(rows[strongest].mul(mask[strongest].flatten()).amax() > SILENT * largest[strongest]):
        return score
    heard = rows.mul(mask.flatten(1)).amax(1) > SILENT * largest
    if not bool(heard.any()):
        return score
    limit = largest[heard].amax()
    scale = torch.where(heard | (largest <= limit), 1.0, limit / largest)
    return (rows * scale[:, None]).reshape(score.shape)


class Revival:
    """Bounds the first step that a unit takes after an update of the topology.

    A unit that this step makes more than twice as large as it was, and than the median unit of its layer, is
    scaled back to the larger of both, and its slots are zeroed. In front of a normalization the outputs are
    the same at any scale.

    Args:
        optimizer: Of the parameters.
        entries: The masked parameters by fqn.
    """

    def __init__(self, optimizer: optim.Optimizer, entries: Mapping[str, MaskedParameter]) -> None:
        self._optimizer = optimizer
        self._entries = {fqn: entry for fqn, entry in entries.items() if entry.param.dim() > 1}
        self._sizes: dict[str, Tensor] = {}

    def watch(self) -> None:
        """Remembers how large all units are; call it after an update."""
        self._sizes = {fqn: _sizes(entry.param) for fqn, entry in self._entries.items()}

    def settle(self) -> None:
        """Scales down what grew out of proportion; call it after every step, it acts on the first."""
        for fqn, before in self._sizes.items():
            entry, present = self._entries[fqn], before[before > 0]
            if not present.numel():
                continue
            after, bound = _sizes(entry.param), before.clamp(min=present.median())
            wild = after > FACTOR * bound
            if bool(wild.any()):
                scale = (bound / after)[wild]
                with torch.no_grad():
                    entry.param[wild] *= scale.reshape(-1, *[1] * (entry.param.dim() - 1))
                for slot in slots_of(self._optimizer, entry).values():
                    slot[wild] = 0
        self._sizes = {}

    def state_dict(self) -> dict[str, Tensor]:
        """Sizes of all units between an update and the step after it, by fqn; empty otherwise."""
        return dict(self._sizes)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state_dict` returned."""
        self._sizes = {fqn: sizes.to(self._entries[fqn].param.device) for fqn, sizes in state.items()}


def _sizes(weight: Tensor) -> Tensor:
    sizes: Tensor = torch.linalg.vector_norm(weight.detach().flatten(1), dim=1)
    return sizes
