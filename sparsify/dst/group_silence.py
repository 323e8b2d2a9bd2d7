"""Units without weights that still say something: their biases, gains and shifts go too.

SRigL ablates a neuron by taking all its weights; its bias and the shift of its norm stay, so it still emits a
constant. Behind a convolution that pads, no bias can take that over, and the unit cannot leave the graph.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn, optim

from sparsify.dst.group_choice import Example, find_groups
from sparsify.dst.groups import Groups
from sparsify.dst.slots import mask_slots
from sparsify.errors import UserError
from sparsify.masks import MaskedParameter, masked_parameters, set_mask, unwrapped


def silence_idle_units(
    model: nn.Module, optimizer: optim.Optimizer | None = None, *, example: Example = None
) -> int:
    """Masks biases, gains and shifts of units that have no weights left, so that `narrow` can take them out.

    Outputs change by the constants that these units emitted: do it after the last topology update, and train
    on.

    Args:
        model: A masked model.
        optimizer: The optimizer that trains it on, whose slots are zeroed in the same places.
        example: Positional inputs of a call, where the model carries none.

    Returns:
        Units that were silenced; those that were silent already are not counted.

    Raises:
        UserError: The model has no units, or without an example no graph to find them in.
    """
    model = unwrapped(model)
    if example is None and not hasattr(model, "sparsify"):
        raise UserError("idle units are found in the graph; pass example=, a tuple of the model's inputs")
    groups = find_groups(model, "units", example=example)
    weights, others = (torch.zeros(len(groups), dtype=torch.float64, device=groups.device) for _ in range(2))
    entries = {id(entry.param): entry for entry in masked_parameters(model).values()}
    for part in groups.parts:
        entry = entries.get(id(part.param))
        active = part.param.detach() != 0 if entry is None or part.param.ndim == 1 else entry.mask
        part.add_totals(active.to(torch.float32), weights if part.param.ndim > 1 else others)
    idle = (weights == 0) & (others > 0)
    if bool(idle.any()):
        _mask(groups, groups.masks(~idle), optimizer)
    return int(torch.count_nonzero(idle))


def _mask(groups: Groups, stays: Mapping[int, Tensor], optimizer: optim.Optimizer | None) -> None:
    for part in groups.parts:
        if part.param.ndim > 1:
            continue
        before = part.owner._buffers.get(f"{part.name}_mask")
        kept = stays[id(part.param)]
        set_mask(part.owner, part.name, kept if before is None else kept & before)
        if optimizer is not None:
            mask_slots(optimizer, MaskedParameter(part.fqn, part.param, part.owner, part.name))
