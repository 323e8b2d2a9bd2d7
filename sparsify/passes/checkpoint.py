"""The parameter map both ways: a dense checkpoint into a rewritten model, and back where that is defined."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from sparsify.errors import SparsifyError, UserError
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import masked_parameters, set_mask, verify_masks, zero_outside
from sparsify.passes.dense import DenseTensor
from sparsify.passes.preserve import DEFAULT_NEW_CONNECTIONS, Sheet, check_preservable, fill
from sparsify.passes.record import Record
from sparsify.passes.recover import check_defined, cut_off, layer_errors, recover
from sparsify.passes.starting import starting_plan
from sparsify.scaling import Scaling


@torch.no_grad()
def load_dense(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    new_connections: float | None = None,
    seed: int = 0,
) -> None:
    """Puts a checkpoint of the dense model into the model that it was transformed into, in place.

    Weights go where `transform(init="preserve")` puts them, and masks are chosen anew by the same rules, with
    the plan's exact counts. The record then says that the weights were kept, and how far each layer is off.

    Args:
        model: From `transform` or `load`.
        state_dict: All of the dense model's keys, and no other; ties may be left out but for one name.
        new_connections: Share of every mask for units that the dense model does not have; by default that of
            the transform, or 0.05.
        seed: Seed of what is drawn.

    Raises:
        UserError: A key is missing, unknown or of another shape, holds NaN or infinite values, or a layer has
            a nonlinearity that the dense layer does not have.
    """
    record = _record(model)
    given = _checked(record, state_dict)
    by_key = {tensor.key: tensor for tensor in record.dense}
    source = {by_key[key].name: value.T if by_key[key].transposed else value for key, value in given.items()}
    if record.plan is None:
        _load_unchanged(model, source)
        return
    stored = (record.preserve or {}).get("new_connections", DEFAULT_NEW_CONNECTIONS)
    share = stored if new_connections is None else new_connections
    check_preservable(record.plan, share)
    sheet = sheet_from(record, share, seed)
    device = next(iter(model.parameters())).device
    own = {name: entry.mask for name, entry in masked_parameters(model).items()}
    planned = {tensor.fqn for layer in record.plan.layers for tensor in layer.tensors if tensor.masked}
    source = {name: value.to(device) for name, value in source.items()}
    fill(model, source, sheet)
    _restore_other_masks(model, {name: mask for name, mask in own.items() if name not in planned})
    verify_masks(model)
    record.weights = "kept"
    record.preserve = {
        "new_connections": share,
        "seed": seed,
        "cut_off": cut_off(model, sheet),
        "outputs": None,
        "layers": layer_errors(model, source, sheet),
    }


@torch.no_grad()
def dense_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict of the dense model that a transformed model computes with, under the user's own keys.

    Masked layers give their weights with zeros; linear parallel, doped and linear factorized layers the one
    matrix that they are; widened layers the block of old units, where the new ones feed nothing.

    Args:
        model: From `transform` or `load`.

    Returns:
        New tensors; tied keys share one.

    Raises:
        UserError: No dense model of the old shapes computes the same; the message names the layer.
    """
    record = _record(model)
    if record.plan is None:
        tensors = model.state_dict()
        return {t.key: _turned(tensors[t.name].clone(), t) for t in record.dense if t.name in tensors}
    sheet = sheet_from(record, 0.0, 0)
    check_defined(model, sheet)
    first = {name: tie[0] for tie in record.ties for name in tie}
    made: dict[str, Tensor] = {}
    for name in sheet.dense:
        shared = first.get(name, name)
        if shared not in made:
            made[shared] = recover(model, sheet, shared).clone()
    return {tensor.key: _turned(made[first.get(tensor.name, tensor.name)], tensor) for tensor in record.dense}


def sheet_from(record: Record, new_connections: float, seed: int) -> Sheet:
    """The sheet of a model that was rewritten before.

    Raises:
        SparsifyError: The record has no plan.
        UserError: The model multiplies what no weights can make up for.
    """
    if record.plan is None or record.scaling is None:
        raise SparsifyError("a model without a plan has nothing to place")
    _check_multipliers(record.scaling, record.ties)
    names = {tensor.key: tensor.name for tensor in record.dense}
    sources = {e.new: names[e.old] for e in record.parameter_map if e.how != "added" and e.old in names}
    dense = {tensor.name: tensor for tensor in record.dense}
    plan = starting_plan(record.plan, record.initial_density)
    return Sheet(plan, record.scaling, dense, sources, seed, new_connections)


def _check_multipliers(scaling: Scaling, ties: tuple[tuple[str, ...], ...]) -> None:
    tied = {name for tie in ties for name in tie}
    shared = [one.fqn for one in scaling.tensors if one.role == "readout" and one.fqn in tied]
    why = ""
    if scaling.attention:
        why = f"it multiplies the logits of {len(scaling.attention)} attentions (base= of another head size)"
    elif shared and scaling.input_multiplier != 1.0:
        why = f"{shared[0]} is the table of an embedding too, which input_multiplier applies to"
    if why:
        raise UserError(
            f"no weights make this model compute what a dense one does: {why}; transform the dense model "
            "without that option"
        )


def _record(model: nn.Module) -> Record:
    record = model.sparsify if isinstance(model, SparseGraphModule) else None
    if not isinstance(record, Record):
        raise UserError(
            f"a {type(model).__name__} has no record of where its parameters come from; take a model from "
            "sparsify.transform or sparsify.load"
        )
    if not record.dense:
        raise UserError(
            "this model does not say what its dense model's tensors are: it was narrowed, or written by an "
            "older version; transform the dense model again"
        )
    return record


def _checked(record: Record, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    known = {tensor.key: tensor for tensor in record.dense}
    keys = {tensor.name: tensor.key for tensor in record.dense}
    for key in state_dict:
        if key not in known:
            near = get_close_matches(key, known, n=3)
            hint = f"; near matches: {', '.join(near)}" if near else ""
            raise UserError(f"the dense model has no key {key!r}{hint}")
    tied = {
        keys[name]: [keys[other] for other in tie if other in keys]
        for tie in record.ties
        for name in tie
        if name in keys
    }
    given: dict[str, Tensor] = {}
    missing = []
    for key, tensor in known.items():
        names = [key, *tied.get(key, ())]
        value = next((state_dict[name] for name in names if name in state_dict), None)
        if value is None:
            missing.append(key)
            continue
        shape = tuple(reversed(tensor.shape)) if tensor.transposed else tensor.shape
        if tuple(value.shape) != shape:
            raise UserError(f"key {key!r} has shape {tuple(value.shape)}; the dense model's is {shape}")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"key {key!r} holds NaN or infinite values; repair the checkpoint")
        given[key] = value.detach()
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise UserError(f"the checkpoint lacks {shown}; it must hold every key of the dense model")
    return given


def _load_unchanged(model: nn.Module, source: Mapping[str, Tensor]) -> None:
    """A model that was never rewritten; masks that it has stay."""
    tensors = model.state_dict()
    for name, value in source.items():
        tensors[name].copy_(value)
    for entry in masked_parameters(model).values():
        zero_outside(entry.param, entry.mask)


def _restore_other_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Masks that the dense model came with and the plan does not know stay as they are."""
    found = masked_parameters(model)
    for name, mask in masks.items():
        if name not in found:
            path, _, leaf = name.rpartition(".")
            set_mask(model.get_submodule(path), leaf, mask)


def _turned(value: Tensor, tensor: DenseTensor) -> Tensor:
    return value.T.contiguous() if tensor.transposed else value
