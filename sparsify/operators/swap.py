"""`accelerate` and `decelerate`: masked layers become sparse ones in place, and dense again."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from sparsify.errors import UserError
from sparsify.masks import MaskedParameter, masked_parameters, unwrapped
from sparsify.operators.decisions import LEAST_GAIN, ROWS, Decision, estimated_gain
from sparsify.operators.layer import SparseLinear

Model = TypeVar("Model", bound=nn.Module)
_REPORTS: MutableMapping[nn.Module, tuple[Decision, ...]] = WeakIdKeyDictionary()


def accelerate(
    model: Model,
    *,
    layers: Iterable[str] | None = None,
    min_sparsity: float | None = None,
    rows: int = ROWS,
) -> Model:
    """Lets masked linear layers run on kernels for sparse weights, in training and inference.

    Parameters, masks, hooks and the layers themselves stay the same objects under the same names; a layer
    only changes its class. The optimizer and a dynamic method may have been made before or after. Layers that
    would not be faster stay dense; `acceleration_report` says which and why. Called again, it decides anew.

    Args:
        model: A transformed or finetuned model, or any with masks. Changed in place.
        layers: Paths of layers, with shell wildcards; only these are considered.
        min_sparsity: Share of zeros from which a layer runs sparse; by default where an estimate of the time
            of a training step says that it wins.
        rows: Rows that reach a layer in a step, for the estimate: the batch, times the length of sequences.

    Returns:
        The same model.

    Raises:
        UserError: When the model has no mask, `min_sparsity` lies outside [0, 1], `rows` is not positive, or
            a path fits no masked layer.
    """
    if min_sparsity is not None and not 0.0 <= min_sparsity <= 1.0:
        raise UserError(f"min_sparsity must lie in [0, 1], got {min_sparsity}")
    if rows < 1:
        raise UserError(f"rows must be at least 1, got {rows}")
    bare = unwrapped(model)
    entries = {fqn.rpartition(".")[0]: entry for fqn, entry in masked_parameters(bare).items()}
    if not entries:
        raise UserError("no parameter of this model has a mask: transform it first (sparsify.transform)")
    paths = None if layers is None else _paths(layers, list(entries))
    decisions = tuple(_decide(fqn, entry, paths, min_sparsity, rows) for fqn, entry in entries.items())
    for decision in decisions:
        _become(entries[decision.fqn].owner, SparseLinear if decision.sparse else nn.Linear)
    _REPORTS[bare] = decisions
    return model


def decelerate(model: Model) -> Model:
    """Takes `accelerate` back: every layer is what it was, bit for bit.

    Args:
        model: Changed in place.

    Returns:
        The same model.
    """
    bare = unwrapped(model)
    for module in bare.modules():
        _become(module, nn.Linear)
    _REPORTS.pop(bare, None)
    return model


def acceleration_report(model: nn.Module) -> tuple[Decision, ...]:
    """What the last `accelerate` decided about each masked layer of this model; empty before it."""
    return _REPORTS.get(unwrapped(model), ())


def _become(module: nn.Module, kind: type[nn.Linear]) -> None:
    if type(module) in (nn.Linear, SparseLinear):
        module.__class__ = kind


def _paths(layers: Iterable[str], known: list[str]) -> set[str]:
    chosen: set[str] = set()
    for path in [layers] if isinstance(layers, str) else layers:
        fitting = {fqn for fqn in known if fnmatchcase(fqn, path)}
        if not fitting:
            raise UserError(f"'{path}' fits no masked layer; there are {', '.join(known)}")
        chosen |= fitting
    return chosen


def _decide(
    fqn: str, entry: MaskedParameter, paths: set[str] | None, min_sparsity: float | None, rows: int
) -> Decision:
    owner, density = entry.owner, entry.density

    def decision(sparse: bool, reason: str) -> Decision:
        kind = "Linear" if type(owner) is SparseLinear else type(owner).__name__
        return Decision(fqn, kind, density, sparse, reason)

    if paths is not None and fqn not in paths:
        return decision(False, "not among the layers asked for")
    if type(owner) not in (nn.Linear, SparseLinear) or entry.name != "weight":
        return decision(False, "only the weights of plain nn.Linear layers have training kernels")
    if entry.param.dtype != torch.float32 and entry.param.device.type == "cpu":
        return decision(False, f"the CPU's kernels are for float32, and the weight is {entry.param.dtype}")
    if entry.param.device.type not in ("cpu", "cuda"):
        return decision(False, f"there are no kernels for the device {entry.param.device}")
    if min_sparsity is not None:
        enough = 1.0 - density >= min_sparsity
        return decision(enough, f"{1 - density:.1%} of its weights are zero, asked for {min_sparsity:.1%}")
    if entry.param.is_cuda:
        return decision(False, "nothing is measured on GPUs to estimate from: name min_sparsity")
    gain = estimated_gain(entry.param.shape[0], entry.param.shape[1], density, rows)
    return decision(
        gain >= LEAST_GAIN, f"a training step of {rows} rows is estimated at {gain:.2f} times the dense speed"
    )
