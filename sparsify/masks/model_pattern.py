"""Which pattern the masks of a model have, as its plan records it."""

from __future__ import annotations

from typing import Any

from torch import nn

from sparsify.errors import SparsifyError
from sparsify.masks.pattern import Pattern
from sparsify.masks.patterns import parse_pattern
from sparsify.masks.state import masked_parameters
from sparsify.masks.unstructured import Unstructured


def pattern_of(model: nn.Module) -> Pattern:
    """The pattern of a model's plan; unstructured for models without one.

    Args:
        model: The model, or a wrapper of it (DataParallel, DistributedDataParallel, torch.compile).
    """
    plan = _plan_of(model)
    return Unstructured() if plan is None else parse_pattern(plan.options.pattern)


def patterns_of(model: nn.Module) -> dict[str, Pattern]:
    """The pattern of every masked parameter, by its fqn in `model`.

    A mask that the model came with, on a layer that the plan leaves alone, is unstructured.
    """
    plan, pattern = _plan_of(model), pattern_of(model)
    entries = masked_parameters(model)
    if plan is None or isinstance(pattern, Unstructured):
        return dict.fromkeys(entries, pattern)
    planned = _planned(model, plan)
    return {fqn: pattern if id(entry.param) in planned else Unstructured() for fqn, entry in entries.items()}


def check_patterns(model: nn.Module) -> None:
    """Checks that every planned mask keeps to the pattern of the plan.

    Unstructured masks may look like anything (biases can have some, too), and masks on the meta device have
    no entries to check. An n:m mask on its way there, with more active entries than planned, keeps as many in
    every group.

    Raises:
        SparsifyError: Naming the first parameter whose mask does not, and where.
    """
    entries = masked_parameters(model)
    for fqn, pattern in patterns_of(model).items():
        if isinstance(pattern, Unstructured) or entries[fqn].mask.is_meta:
            continue
        try:
            pattern.present(entries[fqn].mask).check(entries[fqn].mask)
        except SparsifyError as error:
            raise SparsifyError(
                f"{fqn}: {error}; make the mask with the pattern's mask_from_scores and set it with "
                "masks.set_mask"
            ) from error


def _plan_of(model: nn.Module) -> Any:
    record = getattr(unwrapped(model), "meta", {}).get("sparsify")
    return getattr(record, "plan", None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside the wrappers of torch's data parallelism and torch.compile."""
    while True:
        inner = model._modules.get("module") or model._modules.get("_orig_mod")
        wraps = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
        if inner is None or not (wraps or "_orig_mod" in model._modules):
            return model
        model = inner


def _planned(model: nn.Module, plan: Any) -> set[int]:
    """Ids of the parameters that the plan masks, ties included."""
    parameters = dict(unwrapped(model).named_parameters(remove_duplicate=False))
    names = (tensor.fqn for layer in plan.layers for tensor in layer.tensors if tensor.masked)
    return {id(parameters[name]) for name in names if name in parameters}
