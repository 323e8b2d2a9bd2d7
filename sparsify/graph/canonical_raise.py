"""Raises ATen calls that carry parameters, or differ in training mode, to modules.

One rule an operator: a rule takes the node and returns the module, where it belongs, and what it is called
with; None leaves the call as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from sparsify.graph.canonical_clean import arguments, value
from sparsify.graph.canonical_owners import Owned, Owners, meta_settings, path_inside
from sparsify.graph.modules import ScaledDotProductAttention

aten = torch.ops.aten


@dataclass(frozen=True)
class Raised:
    """A module call that replaces an ATen call: path of the module and the nodes it is called with."""

    path: str
    inputs: tuple[Node, ...]


Rule = Callable[[Node, Owners, Mapping[str, Any]], Raised | None]


def raise_modules(owners: Owners, train_record: Mapping[str, Any]) -> None:
    """Applies the rules to every node of the graph."""
    for node in list(owners.lifted.graph.nodes):
        rule = RULES.get(node.target) if node.op == "call_function" else None
        raised = rule(node, owners, train_record) if rule else None
        if raised is not None:
            _apply(node, raised)


def _apply(node: Node, raised: Raised) -> None:
    graph = node.graph
    with graph.inserting_before(node):
        call = graph.call_module(raised.path, raised.inputs)
    call.meta = dict(node.meta)
    if isinstance(node.meta.get("val"), (tuple, list)):
        call.meta["val"] = node.meta["val"][0]
        for user in list(node.users):
            if user.target == operator.getitem and user.args[1] == 0:
                user.replace_all_uses_with(call)
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(call)
    graph.erase_node(node)


def _owned(kind: type[nn.Module], settings: dict[str, Any], tensors: list[tuple[str, str, bool]]) -> Owned:
    return Owned(kind, tuple(sorted(settings.items())), tuple(tensors))


def _weighted(
    node: Node, owners: Owners, kind: type[nn.Module], settings: dict[str, Any], *, transposed: bool = False
) -> Raised | None:
    """A module with a weight and perhaps a bias, called with the node's `input`."""
    bound = arguments(node)
    x = bound.get("input", bound.get("self"))
    return _with_tensors(node, owners, kind, settings, x, bound["weight"], bound.get("bias"), transposed)


def _with_tensors(
    node: Node,
    owners: Owners,
    kind: type[nn.Module],
    settings: dict[str, Any],
    x: Any,
    weight_node: Any,
    bias_node: Any,
    transposed: bool = False,
) -> Raised | None:
    weight, bias = owners.parameter(weight_node), owners.parameter(bias_node)
    if weight is None or (bias_node is not None and bias is None) or not isinstance(x, Node):
        return None
    path, weight = owners.owner_of(weight, node)
    if path == weight and _reader_count(node, weight) > 1:
        return None
    tensors = [("weight", weight, transposed)]
    if bias is not None:
        tensors.append(("bias", owners.beside(path, "bias", bias), False))
    full = settings | meta_settings(owners.lifted.tensors[weight])
    if not owners.place(path, _owned(kind, full, tensors)):
        return None
    return Raised(path, (x,))


def _reader_count(node: Node, path: str) -> int:
    return sum(len(n.users) for n in node.graph.nodes if n.op == "get_attr" and n.target == path)


def _linear(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    weight = value(arguments(node)["weight"])
    bias = arguments(node)["bias"] is not None
    if weight.ndim != 2:
        return None
    settings = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": bias}
    return _weighted(node, owners, nn.Linear, settings)


_CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def _conv(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    weight = value(bound["weight"])
    kind = _CONVOLUTIONS.get(weight.ndim)
    if kind is None or bound.get("transposed"):
        return None
    spatial = weight.ndim - 2
    settings = {
        "in_channels": weight.shape[1] * bound["groups"],
        "out_channels": weight.shape[0],
        "kernel_size": tuple(weight.shape[2:]),
        "stride": _each(bound["stride"], spatial),
        "padding": bound["padding"]
        if isinstance(bound["padding"], str)
        else _each(bound["padding"], spatial),
        "dilation": _each(bound["dilation"], spatial),
        "groups": bound["groups"],
        "bias": bound["bias"] is not None,
    }
    return _weighted(node, owners, kind, settings)


def _each(sizes: Any, count: int) -> tuple[int, ...]:
    given = tuple(sizes) if isinstance(sizes, (list, tuple)) else (sizes,)
    return given * count if len(given) == 1 else given


def _embedding(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    weight = value(bound["weight"])
    padding = bound["padding_idx"]
    settings = {
        "num_embeddings": weight.shape[0],
        "embedding_dim": weight.shape[1],
        "padding_idx": padding if padding >= 0 else None,
        "scale_grad_by_freq": bound["scale_grad_by_freq"],
        "sparse": bound["sparse"],
    }
    return _with_tensors(node, owners, nn.Embedding, settings, bound["indices"], bound["weight"], None)


def _layer_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    if bound["weight"] is None:
        return None
    settings = {
        "normalized_shape": tuple(bound["normalized_shape"]),
        "eps": bound["eps"],
        "bias": bound["bias"] is not None,
    }
    return _weighted(node, owners, nn.LayerNorm, settings)


def _rms_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    if bound["weight"] is None:
        return None
    settings = {"normalized_shape": tuple(bound["normalized_shape"]), "eps": bound["eps"]}
    return _with_tensors(node, owners, nn.RMSNorm, settings, bound["input"], bound["weight"], None)


def _group_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    if bound["weight"] is None or bound["bias"] is None:
        return None
    settings = {
        "num_groups": bound["num_groups"],
        "num_channels": value(bound["weight"]).shape[0],
        "eps": bound["eps"],
    }
    return _weighted(node, owners, nn.GroupNorm, settings)


_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_BATCH_NORM_LEAVES = ("weight", "bias", "running_mean", "running_var")


def _batch_norm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    paths = {leaf: owners.tensor(bound.get(leaf)) for leaf in _BATCH_NORM_LEAVES}
    given = {leaf: path for leaf, path in paths.items() if path is not None}
    anchor = given.get("weight", given.get("running_mean"))
    kind = _BATCH_NORMS.get(value(bound["input"]).ndim)
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
    if not owners.place(path, _owned(kind, settings, tensors)):
        return None
    return Raised(path, (bound["input"],))


_FEATURE_DROPOUTS: dict[int, type[nn.Module]] = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}


def _dropout(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    x: Node = bound["input"]
    kind: type[nn.Module] | None = nn.Dropout
    if node.target == aten.alpha_dropout.default:
        kind = nn.AlphaDropout
    elif node.target == aten.feature_dropout.default:
        kind = _FEATURE_DROPOUTS.get(value(x).ndim)
    if kind is None:
        return None
    path = owners.place_free(path_inside(node, "dropout"), _owned(kind, {"p": float(bound["p"])}, []))
    return Raised(path, (x,))


def _attention(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    base = path_inside(node, "sdpa")
    p = float(record.get(base, {}).get("attention_dropout", bound["dropout_p"]))
    if p == 0.0:
        return None
    settings = {
        "dropout_p": p,
        "is_causal": bound["is_causal"],
        "scale": bound["scale"],
        "enable_gqa": bound["enable_gqa"],
    }
    inputs = [bound["query"], bound["key"], bound["value"]]
    if bound["attn_mask"] is not None:
        inputs.append(bound["attn_mask"])
    path = owners.place_free(base, _owned(ScaledDotProductAttention, settings, []))
    return Raised(path, tuple(inputs))


def _matmul(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    """x @ W for a 2-D Parameter W [in, out] that nothing else reads: a Linear with the transposed weight."""
    x, weight = node.args[0], node.args[1]
    return _product(node, owners, x, weight, None)


def _addmm(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    if bound["beta"] != 1 or bound["alpha"] != 1 or value(bound["self"]).ndim != 1:
        return None
    return _product(node, owners, bound["mat1"], bound["mat2"], bound["self"])


def _product(node: Node, owners: Owners, x: Any, weight: Any, bias: Any) -> Raised | None:
    turned = isinstance(weight, Node) and weight.target in (
        aten.t.default,
        aten.permute.default,
        aten.transpose.int,
    )
    source = weight.args[0] if turned else weight
    path = owners.parameter(source)
    if path is None or owners.lifted.tensors[path].ndim != 2 or value(x).ndim < 2:
        return None
    if not turned and (path in owners.aliases or not _only_products(source)):
        return None
    rows, columns = value(weight).shape
    if bias is not None and tuple(value(bias).shape) != (columns,):
        return None
    settings = {"in_features": rows, "out_features": columns, "bias": bias is not None}
    return _with_tensors(node, owners, nn.Linear, settings, x, source, bias, transposed=not turned)


def _only_products(read: Node) -> bool:
    """Whether every reader of a Parameter multiplies by it from the right."""
    readers = [u for n in read.graph.nodes if n.op == "get_attr" and n.target == read.target for u in n.users]
    place = {aten.addmm.default: 2, aten.mm.default: 1, aten.matmul.default: 1}
    return all(u.target in place and _reads(u.args[place[u.target]], read) for u in readers)


def _reads(argument: Any, read: Node) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr" and argument.target == read.target


RULES: dict[Any, Rule] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.mm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.conv1d.default: _conv,
    aten.conv2d.default: _conv,
    aten.conv3d.default: _conv,
    aten.conv1d.padding: _conv,
    aten.conv2d.padding: _conv,
    aten.conv3d.padding: _conv,
    aten.convolution.default: _conv,
    aten.embedding.default: _embedding,
    aten.layer_norm.default: _layer_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten._native_batch_norm_legit_functional.default: _batch_norm,
    aten.dropout.default: _dropout,
    aten.native_dropout.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.alpha_dropout.default: _dropout,
    aten.scaled_dot_product_attention.default: _attention,
}
