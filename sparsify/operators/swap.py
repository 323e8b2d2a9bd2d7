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
from sparsify.operators.decisions import LEAST_GAIN, ROWS, Decision, estimated_conv_gain, estimated_gain
from sparsify.operators.layer import SPARSE

Model = TypeVar("Model", bound=nn.Module)
_DENSE = {sparse: dense for dense, sparse in SPARSE.items()}
_REPORTS: MutableMapping[nn.Module, tuple[Decision, ...]] = WeakIdKeyDictionary()


def accelerate(
    model: Model,
    *,
    layers: Iterable[str] | None = None,
    min_sparsity: float | None = None,
    rows: int = ROWS,
) -> Model:
    """Lets masked linear and convolution layers run on kernels for sparse weights, in training too.

    Parameters, masks, hooks and the layers themselves stay the same objects under the same names; a layer
    only changes its class. The optimizer and a dynamic method may have been made before or after. Layers that
    would not be faster stay dense; `acceleration_report` says which and why. Called again, it decides anew.

    Args:
        model: A transformed or finetuned model, or any with masks. Changed in place.
        layers: Paths of layers, with shell wildcards; only these are considered.
        min_sparsity: Share of zeros from which a layer runs sparse; by default where an estimate of the time
            of a training step says that it wins.
        rows: Rows that reach a linear layer in a step, for the estimate: the batch, times the length of
            sequences.

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
        _become(entries[decision.fqn].owner, decision.sparse)
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
        _become(module, sparse=False)
    _REPORTS.pop(bare, None)
    return model


def acceleration_report(model: nn.Module) -> tuple[Decision, ...]:
    """What the last `accelerate` decided about each masked layer of this model; empty before it."""
    return _REPORTS.get(unwrapped(model), ())


def _plain(module: nn.Module) -> type[nn.Module]:
    """The class of a layer as it is without acceleration."""
    return _DENSE.get(type(module), type(module))


def _become(module: nn.Module, sparse: bool) -> None:
    kind = _plain(module)
    if kind in SPARSE:
        module.__class__ = SPARSE[kind] if sparse else kind


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
    owner, density, kind = entry.owner, entry.density, _plain(entry.owner)

    def decision(sparse: bool, reason: str) -> Decision:
        return Decision(fqn, kind.__name__, density, sparse, reason)

    if paths is not None and fqn not in paths:
        return decision(False, "not among the layers asked for")
    if kind not in SPARSE or entry.name != "weight":
        return decision(
            False, "only the weights of plain nn.Linear and nn.Conv2d layers have training kernels"
        )
    if entry.param.dtype != torch.float32 and entry.param.device.type == "cpu":
        return decision(False, f"the CPU's kernels are for float32, and the weight is {entry.param.dtype}")
    if entry.param.device.type not in ("cpu", "cuda"):
        return decision(False, f"there are no kernels for the device {entry.param.device}")
    if isinstance(owner, nn.Conv2d) and (reason := _no_kernels(owner)):
        return decision(False, reason)
    if min_sparsity is not None:
        enough = 1.0 - density >= min_sparsity
        return decision(enough, f"{1 - density:.1%} of its weights are zero, asked for {min_sparsity:.1%}")
    if entry.param.is_cuda:
        return decision(False, "nothing is measured on GPUs to estimate from: name min_sparsity")
    if isinstance(owner, nn.Conv2d):
        gain, step = estimated_conv_gain(owner.weight.shape, density, owner.stride), "a training step"
    else:
        gain = estimated_gain(entry.param.shape[0], entry.param.shape[1], density, rows)
        step = f"a training step of {rows} rows"
    return decision(gain >= LEAST_GAIN, f"{step} is estimated at {gain:.2f} times the dense speed")


def _no_kernels(conv: nn.Conv2d) -> str | None:
    if conv.weight.is_cuda:
        return "convolutions have no training kernels for a GPU"
    if conv.groups != 1:
        return f"it has {conv.groups} groups, and the training kernels are for one"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return "the training kernels pad with zeros, by numbers"
    return None
