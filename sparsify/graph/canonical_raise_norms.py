"""Raises normalisations to modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from sparsify.graph.canonical_clean import arguments, value
from sparsify.graph.canonical_owners import Owners, meta_settings
from sparsify.graph.canonical_raised import Raised, Rule, owned, weighted, with_tensors

aten = torch.ops.aten


def _layer_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    if bound["weight"] is None:
        return None
    settings = {
        "normalized_shape": tuple(bound["normalized_shape"]),
        "eps": bound["eps"],
        "bias": bound["bias"] is not None,
    }
    return weighted(node, owners, nn.LayerNorm, settings)


def _rms_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    if bound["weight"] is None:
        return None
    settings = {"normalized_shape": tuple(bound["normalized_shape"]), "eps": bound["eps"]}
    return with_tensors(node, owners, nn.RMSNorm, settings, bound["input"], bound["weight"], None)


def _group_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    if bound["weight"] is None or bound["bias"] is None:
        return None
    settings = {
        "num_groups": bound["num_groups"],
        "num_channels": value(bound["weight"]).shape[0],
        "eps": bound["eps"],
    }
    return weighted(node, owners, nn.GroupNorm, settings)


_BATCH_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_INSTANCE_NORMS: dict[int, type[nn.Module]] = {
    3: nn.InstanceNorm1d,
    4: nn.InstanceNorm2d,
    5: nn.InstanceNorm3d,
}
_LEAVES = ("weight", "bias", "running_mean", "running_var")


def _batch_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    return _with_statistics(node, owners, record, _BATCH_NORMS)


def _instance_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    if bound["use_input_stats"] is not (bound["running_mean"] is None):
        return None
    return _with_statistics(node, owners, record, _INSTANCE_NORMS)


def _with_statistics(
    node: Node, owners: Owners, record: Mapping[str, Any], kinds: Mapping[int, type[nn.Module]]
) -> Raised | None:
    """Batch or instance normalisation with a weight, running statistics, or both."""
    bound = arguments(node)
    paths = {leaf: owners.tensor(bound.get(leaf)) for leaf in _LEAVES}
    given = {leaf: path for leaf, path in paths.items() if path is not None}
    anchor = given.get("weight", given.get("running_mean"))
    kind = kinds.get(value(bound["input"]).ndim)
    affine, tracked = "weight" in given, "running_mean" in given
    whole = affine == ("bias" in given) and tracked == ("running_var" in given)
    if (
        anchor is None
        or kind is None
        or not whole
        or len(given) != sum(bound.get(k) is not None for k in paths)
    ):
        return None
    path = anchor.rpartition(".")[0]
    tensors = [(leaf, owners.beside(path, leaf, source), False) for leaf, source in given.items()]
    if any(source != f"{path}.{leaf}" for leaf, source, _ in tensors):
        return None
    counter = f"{path}.num_batches_tracked"
    if counter in owners.lifted.tensors:
        tensors.append(("num_batches_tracked", counter, False))
    settings = {
        "num_features": owners.lifted.tensors[anchor].shape[0],
        "eps": bound["eps"],
        "momentum": None if record.get(path, {}).get("cumulative") else bound["momentum"],
        "affine": affine,
        "track_running_stats": tracked,
    } | meta_settings(owners.lifted.tensors[anchor])
    if not owners.place(path, owned(kind, settings, tensors)):
        return None
    return Raised(path, (bound["input"],))


NORM_RULES: dict[Any, Rule] = {
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten._native_batch_norm_legit_functional.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
}
