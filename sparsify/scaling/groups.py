"""Optimizer parameter groups that carry the stored scaling."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, get_args

from torch import nn

from sparsify.errors import UserError
from sparsify.scaling.table import Scaling

OptimizerFamily = Literal["adamw", "sgd"]


class Scaled(Protocol):
    """The part of a model's record that this module reads."""

    @property
    def scaling(self) -> Scaling | None:
        """The stored scaling, or None for a model that was only traced."""
        ...


def stored_scaling(model: nn.Module) -> Scaling | None:
    """The scaling fixed when the model was transformed, or None for a plain model.

    Data-parallel wrappers are looked through, by their `module`.
    """
    record: Scaled | None = getattr(model, "sparsify", None)
    if record is not None:
        return record.scaling
    inner = getattr(model, "module", None)
    return stored_scaling(inner) if isinstance(inner, nn.Module) else None


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    optimizer: OptimizerFamily = "adamw",
    parameterization: str | None = None,
    eps: float = 1e-8,
    scale_weight_decay: bool = True,
    scale_eps: bool = True,
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, with the learning rates of the stored parameterization.

    Every trainable parameter is in exactly one group. Weight decay is divided by the group's learning-rate
    factor, since both optimizers multiply it by the learning rate: lr · weight_decay is the same for every
    parameter, as in the dense base. It applies to all parameters, biases and norms included, as
    `Optimizer(model.parameters())` does. Adam's ε follows the size of gradients, which fall with width.

    Nothing is changed in the model, so that calling it again gives the same groups.

    Args:
        model: A transformed model, or a plain one (one group, factor 1).
        lr: Learning rate of the dense base.
        weight_decay: Weight decay of the dense base.
        optimizer: Which column of the table: `adamw` (Adam too) or `sgd`.
        parameterization: None for the stored one; naming it asserts it.
        eps: ε of the dense base, for `adamw`. It is in the groups, which go before an optimizer's argument.
        scale_weight_decay: False gives every group `weight_decay` as it is.
        scale_eps: False gives every group `eps` as it is.

    Returns:
        Dicts with `params`, `lr`, `weight_decay` and `names`, and for `adamw` `eps`, in order of first
        appearance.

    Raises:
        UserError: When another parameterization is stored, or a parameter has no entry in the stored scaling.
    """
    if optimizer not in get_args(OptimizerFamily):
        raise UserError(f"optimizer '{optimizer}' is not one of adamw, sgd")
    scaling = stored_scaling(model)
    stored = "sp" if scaling is None else scaling.parameterization
    if parameterization is not None and parameterization != stored:
        raise UserError(
            f"the model was made with parameterization '{stored}', '{parameterization}' was asked for; it is "
            "fixed when a model is transformed, since initial weights depend on it: transform the model again"
        )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, aliases, param in _trainable(model):
        factor, shrink = (1.0, 1.0) if scaling is None else _factors(scaling, aliases, optimizer)
        shrink = shrink if scale_eps and optimizer == "adamw" else 1.0
        group = groups.setdefault(
            (factor, shrink),
            {
                "params": [],
                "lr": lr * factor,
                "weight_decay": weight_decay / (factor if scale_weight_decay else 1.0),
                "names": [],
            }
            | ({"eps": eps * shrink} if optimizer == "adamw" else {}),
        )
        group["params"].append(param)
        group["names"].append(name)
    return list(groups.values())


def _trainable(model: nn.Module) -> Iterator[tuple[str, list[str], nn.Parameter]]:
    """Yields (first name, all names, parameter) for every trainable parameter."""
    aliases: dict[int, list[str]] = {}
    for name, param in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(param), []).append(name)
    for name, param in model.named_parameters():
        if param.requires_grad:
            yield name, aliases[id(param)], param


def _factors(scaling: Scaling, names: list[str], optimizer: OptimizerFamily) -> tuple[float, float]:
    """Factors on the learning rate and on ε."""
    for name in names:
        for fqn in (name, name.removeprefix("module.")):
            if fqn in scaling:
                one = scaling[fqn]
                return (one.sgd_lr if optimizer == "sgd" else one.adam_lr), one.adam_eps
    raise UserError(
        f"no scaling is stored for parameter '{names[0]}': it was added after the transform; freeze it here "
        "and give it to the optimizer in a group of your own"
    )
