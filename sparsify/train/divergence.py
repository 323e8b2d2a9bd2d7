"""Divergence: what is looked at, and how a run that diverged is explained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsify.errors import UserError


class TrainingDivergedError(UserError):
    """A loss, gradient or weight that is not finite: the numbers of the run are of no use any more."""


def gradient_norm(model: nn.Module, clip: float | None) -> float:
    """Norm of all gradients together; they are clipped in place where it is larger than `clip`.

    Returns:
        The norm before clipping; not finite where some gradient is not.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    value = float(norm)
    if clip is not None and value > clip:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    return value


def bad_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters whose gradient is not finite."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not _finite(parameter.grad)
    ]


def bad_weights(model: nn.Module) -> list[str]:
    """Names of the parameters and floating-point buffers that are not finite."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if tensor.is_floating_point() and not _finite(tensor.detach())]


def listed(names: list[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
