"""Adapters into a sparse model: low-rank and full updates of weights, added under the masks.

Source of the low-rank form: Hu et al., "LoRA" (arXiv 2106.09685): W + (α / r) · B · A. Key names as `peft`
writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from sparsify.errors import UserError
from sparsify.masks import SparseGraphModule, masked_parameters, verify_masks, zero_outside

LowRank = tuple[Tensor, Tensor, float]
_PEFT_PREFIX = "base_model.model."
_SAME_SHAPE = ("kept", "redrawn", "pruned")


@dataclass(frozen=True)
class _Target:
    """The parameter that an update goes to, and whether the user's own is its transpose."""

    fqn: str
    transposed: bool


@torch.no_grad()
def merge_delta(
    model: nn.Module, updates: Mapping[str, Tensor | LowRank], *, alpha: float | None = None
) -> dict[str, float]:
    """Adds updates to weights in place; weights outside a mask stay exactly zero.

    Args:
        model: Any module; masks are found beside its parameters.
        updates: One of two forms. Parameter name to an update: a tensor of the parameter's shape, or
            (A, B, scale) with A [r, in] and B [out, r] for scale · B · A (convolutions: A [r, in, *kernel],
            B [out, r, 1, …]). Or the state_dict of a `peft` LoRA adapter, with keys `….lora_A.weight` and
            `….lora_B.weight`. Names are those of the model, or of the dense model that it was made from.
        alpha: With a `peft` state_dict its `lora_alpha`: the scale is alpha / r (for rank-stabilised
            adapters give lora_alpha · √r).

    Returns:
        For each parameter the share of its update that the mask let through: ‖update · mask‖ / ‖update‖.

    Raises:
        UserError: A name is unknown, a layer has changed its shape since the dense model, shapes do not fit,
            values are not finite, or an adapter is of a kind that is no weight update. Nothing is changed
            then.
    """
    named = _from_peft(updates, alpha) if any("lora_" in name for name in updates) else dict(updates)
    if not named:
        raise UserError("there is no update to merge")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    masks = {id(entry.param): entry.mask for entry in masked_parameters(model).values()}
    ready: list[tuple[str, nn.Parameter, Tensor]] = []
    for name, update in named.items():
        target = _target(model, name, parameters)
        ready.append((name, parameters[target.fqn], _delta(model, name, update, target, parameters)))
    kept: dict[str, float] = {}
    for name, parameter, delta in ready:
        mask = masks.get(id(parameter))
        norm = float(delta.norm())
        if mask is not None:
            zero_outside(delta, mask)
        kept[name] = float(delta.norm()) / norm if norm else 1.0
        parameter.copy_(parameter.to(delta.dtype) + delta)
        if mask is not None:
            zero_outside(parameter, mask)
    verify_masks(model)
    return kept


def _delta(
    model: nn.Module,
    name: str,
    update: Tensor | LowRank,
    target: _Target,
    parameters: Mapping[str, nn.Parameter],
) -> Tensor:
    """The update as a new tensor of the parameter's shape, at least float32."""
    parameter = parameters[target.fqn]
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    if isinstance(update, Tensor):
        delta = update.detach().to(parameter.device, dtype, copy=True)
        delta = delta.T if target.transposed and delta.dim() == 2 else delta
    else:
        delta = _product(name, update, parameter.device, dtype)
        if _stores_inputs_first(model, target.fqn):
            delta = delta.T
        elif delta.numel() == parameter.numel() and len(delta) == len(parameter):
            delta = delta.reshape(parameter.shape)
    if delta.shape != parameter.shape:
        raise UserError(
            f"the update of '{name}' has shape {tuple(delta.shape)}, the weight {tuple(parameter.shape)}: it "
            "belongs to another model"
        )
    if not bool(torch.isfinite(delta).all()):
        raise UserError(f"the update of '{name}' holds NaN or infinite values")
    return delta.contiguous()


def _product(name: str, update: LowRank, device: torch.device, dtype: torch.dtype) -> Tensor:
    try:
        down, up, scale = update
        first, second = (tensor.detach().to(device, dtype).flatten(1) for tensor in (down, up))
        product: Tensor = float(scale) * (second @ first)
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise UserError(
            f"the update of '{name}' is no tensor and no (A, B, scale) with A [r, in] and B [out, r]: {error}"
        ) from error
    return product


def _stores_inputs_first(model: nn.Module, fqn: str) -> bool:
    """Whether this is the weight of a transformers Conv1D, a linear layer stored as [in, out]."""
    owner = model.get_submodule(fqn.rpartition(".")[0])
    return type(owner).__name__ == "Conv1D" and not isinstance(owner, nn.Conv1d)


def _target(model: nn.Module, name: str, parameters: Mapping[str, nn.Parameter]) -> _Target:
    record = model.sparsify if isinstance(model, SparseGraphModule) else None
    entries = [entry for entry in record.parameter_map if entry.old == name] if record else []
    changed = [entry for entry in entries if entry.how not in _SAME_SHAPE]
    if changed:
        raise UserError(
            f"'{name}' of the dense model has become {', '.join(entry.new for entry in entries)} "
            f"({changed[0].how}), which an update of the dense weight does not fit; merge it into the dense "
            "model before the transform, or train the adapter on this model"
        )
    if entries:
        return _Target(entries[0].new, entries[0].transposed)
    if name in parameters:
        return _Target(name, False)
    near = get_close_matches(name, parameters, n=3)
    hint = f"; near matches: {', '.join(near)}" if near else ""
    raise UserError(f"the model has no parameter '{name}' to add an update to{hint}")


def _from_peft(updates: Mapping[str, Any], alpha: float | None) -> dict[str, Tensor | LowRank]:
    """Pairs of the state_dict of a LoRA adapter, by the name of the weight that each belongs to."""
    if alpha is None or not math.isfinite(alpha):
        raise UserError(
            "the state_dict of an adapter does not hold its scale: give alpha=, the lora_alpha of its "
            "adapter_config.json"
        )
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in updates.items():
        path, found, rest = key.removeprefix(_PEFT_PREFIX).partition(".lora_")
        part = rest.split(".")[0]
        if not found or part not in ("A", "B") or not rest.endswith("weight"):
            raise UserError(
                f"'{key}' is no weight of a LoRA pair: biases, embeddings, magnitudes (DoRA) and modules "
                "trained whole cannot be merged under a mask; merge them with peft into the dense model"
            )
        pairs.setdefault(path.removesuffix(".base_layer") + ".weight", {})[part] = tensor
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise UserError(f"the adapter of '{name}' lacks its lora_{'B' if 'A' in pair else 'A'}.weight")
    return {name: (pair["A"], pair["B"], alpha / len(pair["A"])) for name, pair in pairs.items()}
