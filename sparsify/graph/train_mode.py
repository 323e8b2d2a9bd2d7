"""What training mode changes in a model, beyond what the graph traced in eval mode says.

Dropout modules keep their probability in the eval graph. Attention dropout and branches on `self.training` do
not: they come from a second trace in training mode, aligned with the first by module path.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from sparsify.errors import Refusal
from sparsify.graph.canonical_clean import arguments, drop_checks, drop_no_ops
from sparsify.graph.canonical_lift import inline_regions, lift
from sparsify.graph.canonical_owners import path_inside, stack_path
from sparsify.graph.modules import ScaledDotProductAttention

aten = torch.ops.aten
RULE = "training-mode"

_DROPOUTS = {
    aten.dropout.default,
    aten.dropout_.default,
    aten.feature_dropout.default,
    aten.feature_dropout_.default,
    aten.alpha_dropout.default,
    aten.alpha_dropout_.default,
}
_SWITCHED = _DROPOUTS | {aten.batch_norm.default}
_IMMATERIAL = {aten.contiguous.default, aten.clone.default, aten.sym_size.int}
_OWN = ("torch.nn.", "torch.fx.", "sparsify.graph.")
_BRANCHING: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, nn.RReLU, nn.TransformerEncoderLayer)


def needs_train_trace(model: nn.Module) -> bool:
    """Whether some module's code reads `training`, other than torch's own layers that the graph covers."""
    kinds = {type(module) for module in model.modules()}
    if any(issubclass(kind, _BRANCHING) for kind in kinds):
        return True
    classes = {base for kind in kinds for base in kind.__mro__}
    return any(
        _reads_training(c) for c in classes if not f"{c.__module__}.".startswith(_OWN) and c is not object
    )


def _reads_training(kind: type) -> bool:
    for member in vars(kind).values():
        function = getattr(member, "__func__", member)
        while hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        if isinstance(function, types.FunctionType) and "training" in _names(function.__code__):
            return True
    return False


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def train_record(model: nn.Module) -> dict[str, Any]:
    """What a model's modules say about training mode and a graph traced in eval mode does not.

    Returns:
        Module path to `{"attention_dropout": p}` or, for BatchNorm with a cumulative average,
        `{"cumulative": True}`. It is stored beside an archive.
    """
    record: dict[str, Any] = {}
    for path, module in model.named_modules():
        if isinstance(module, ScaledDotProductAttention) and module.dropout_p > 0:
            record[path] = {"attention_dropout": module.dropout_p}
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None:
            record[path] = {"cumulative": True}
    return record


def align(evaluated: ExportedProgram, trained: ExportedProgram) -> tuple[dict[str, Any], list[Refusal]]:
    """Compares a trace in eval mode with one in training mode.

    Returns:
        Attention dropout by module path, and a refusal for every module that computes something else in
        training mode.
    """
    before, after = _calls(evaluated), _calls(trained)
    record: dict[str, Any] = {}
    refusals: list[Refusal] = []
    for path in sorted(before.keys() | after.keys()):
        evals, trains = before.get(path, []), after.get(path, [])
        difference = _difference(evals, trains)
        if difference:
            refusals.append(Refusal(path, RULE, f"{difference}, which the eval-mode graph does not do"))
            continue
        for node in trains:
            if node.target == aten.scaled_dot_product_attention.default:
                p = float(arguments(node)["dropout_p"])
                if p > 0:
                    record[path_inside(node, "sdpa")] = {"attention_dropout": p}
        _dropouts(evals, trains, record, refusals)
    return record, refusals


def _dropouts(evals: list[Node], trains: list[Node], record: dict[str, Any], refusals: list[Refusal]) -> None:
    """Notes probabilities that code passes in training mode only, where all calls at one path agree."""
    pairs = [pair for pair in zip(evals, trains, strict=True) if pair[1].target in _DROPOUTS]
    if all(_probability(old) == _probability(new) for old, new in pairs):
        return
    found: dict[str, set[float]] = defaultdict(set)
    for _, node in pairs:
        found[path_inside(node, "dropout")].add(_probability(node))
    for path, probabilities in found.items():
        if len(probabilities) == 1:
            record[path] = {"dropout": next(iter(probabilities))}
        else:
            shown = ", ".join(f"{p:g}" for p in sorted(probabilities))
            reason = f"its calls of dropout have different probabilities in training mode only ({shown})"
            refusals.append(Refusal(path, RULE, f"{reason}; use nn.Dropout modules"))


def _probability(node: Node) -> float:
    return float(arguments(node)["p"])


def _calls(ep: ExportedProgram) -> Mapping[str, list[Node]]:
    lifted = lift(ep)
    inline_regions(lifted)
    drop_checks(lifted)
    drop_no_ops(lifted)
    by_path: dict[str, list[Node]] = defaultdict(list)
    for node in lifted.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target not in _IMMATERIAL:
            by_path[stack_path(node)].append(node)
    return by_path


def _difference(evals: list[Node], trains: list[Node]) -> str | None:
    if [n.target for n in evals] != [n.target for n in trains]:
        have, extra = [str(n.target) for n in evals], []
        for node in trains:
            if str(node.target) in have:
                have.remove(str(node.target))
            else:
                extra.append(str(node.target))
        return f"in training mode it computes {', '.join(extra) if extra else 'other operators'}"
    for old, new in zip(evals, trains, strict=True):
        if old.target not in _SWITCHED and _flag(old) != _flag(new):
            return f"in training mode it computes {new.target} with training=True"
    return None


def _flag(node: Node) -> Any:
    bound = arguments(node)
    return bound.get("training", bound.get("train"))
