"""What a run is made of besides model and data: optimizer, algorithm, device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn, optim

from sparsify import dst
from sparsify.errors import UserError
from sparsify.masks import SparseGraphModule, masked_parameters
from sparsify.scaling import param_groups
from sparsify.train.data import Batch
from sparsify.train.options import Resolved

_TAKE_DENSE_MODELS = ("gmp", "wgsef", "group-lasso")


def make_optimizer(model: nn.Module, options: Resolved) -> optim.Optimizer:
    """The optimizer, on the groups of the model's stored parameterization.

    Raises:
        UserError: When nothing is trainable.
    """
    groups = param_groups(
        model, lr=options.lr, weight_decay=options.weight_decay, optimizer=options.optimizer
    )
    if not groups:
        raise UserError("the model has no trainable parameter")
    if options.optimizer == "sgd":
        return optim.SGD(groups, lr=options.lr, momentum=options.momentum)
    return optim.AdamW(groups, lr=options.lr)


def make_algorithm(
    model: nn.Module,
    optimizer: optim.Optimizer,
    options: Resolved,
    *,
    example: Batch | None = None,
    watch: Callable[[str, Any], object] | None = None,
) -> dst.Algorithm | None:
    """The sparse training algorithm, or None for `dense`.

    Args:
        model: The model.
        optimizer: Its optimizer.
        options: Of the run.
        example: Inputs, for methods that look into the graph of a plain module.
        watch: For methods that call one around an abrupt change.

    Raises:
        UserError: When the method does not fit the model (masks and `dense`, or none and another), or has no
            such option.
    """
    masked = bool(masked_parameters(model))
    if options.method == "dense":
        if masked:
            raise UserError("the model has masks, which 'dense' would ignore; use method 'static' or 'rigl'")
        return None
    if not masked and options.method not in _TAKE_DENSE_MODELS:
        raise UserError(f"the model has no masks for '{options.method}'; transform it first, or use 'dense'")
    given: dict[str, Any] = {"seed": options.seed}
    known = dst.method_options(options.method)
    if "watch" in known:
        given["watch"] = watch
    if "example" in known and example is not None and not example.kwargs:
        given["example"] = None if isinstance(model, SparseGraphModule) else example.args
    return dst.make(
        options.method,
        model,
        optimizer,
        total_steps=options.steps,
        update_every=options.update_every,
        **(given | options.method_options),
    )


def choose_device(device: str) -> torch.device:
    """The device of a name; `auto` takes a GPU where there is one.

    Raises:
        UserError: When torch knows no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device '{device}': {error}") from error
