"""Raises ATen calls that carry parameters, or differ in training mode, to modules.

One rule an operator: a rule takes the node and returns the module, where it belongs, and what it is called
with; None leaves the call as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from sparsify.graph.canonical_clean import arguments, value
from sparsify.graph.canonical_owners import Owners, path_inside
from sparsify.graph.canonical_raise_norms import NORM_RULES
from sparsify.graph.canonical_raised import Raised, Rule, owned, weighted, with_tensors
from sparsify.graph.modules import ScaledDotProductAttention

aten = torch.ops.aten

TRANSPOSITIONS = (
    aten.t.default,
    aten.permute.default,
    aten.transpose.int,
    aten.numpy_T.default,
    aten.mT.default,
    aten.matrix_H.default,
    aten.adjoint.default,
)
"""Operators that exchange the two dimensions of a matrix."""


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


def _linear(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    weight = value(arguments(node)["weight"])
    bias = arguments(node)["bias"] is not None
    if weight.ndim != 2:
        return None
    settings = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": bias}
    return weighted(node, owners, nn.Linear, settings)


_CONVOLUTIONS: dict[int, type[nn.Module]] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {
    3: nn.ConvTranspose1d,
    4: nn.ConvTranspose2d,
    5: nn.ConvTranspose3d,
}


def _conv(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    weight = value(bound["weight"])
    transposed = bound.get("transposed", "transpose" in str(node.target))
    kind = (_TRANSPOSED if transposed else _CONVOLUTIONS).get(weight.ndim)
    if kind is None:
        return None
    spatial = weight.ndim - 2
    outer, inner = weight.shape[0], weight.shape[1] * bound["groups"]
    settings = {
        "in_channels": outer if transposed else inner,
        "out_channels": inner if transposed else outer,
        "kernel_size": tuple(weight.shape[2:]),
        "stride": _each(bound["stride"], spatial),
        "padding": bound["padding"]
        if isinstance(bound["padding"], str)
        else _each(bound["padding"], spatial),
        "dilation": _each(bound["dilation"], spatial),
        "groups": bound["groups"],
        "bias": bound["bias"] is not None,
    }
    if transposed:
        settings["output_padding"] = _each(bound["output_padding"], spatial)
    return weighted(node, owners, kind, settings)


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
    return with_tensors(node, owners, nn.Embedding, settings, bound["indices"], bound["weight"], None)


_BAG_MODES = ("sum", "mean", "max")


def _embedding_bag(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    rest = [bound["offsets"]]
    if bound["per_sample_weights"] is not None:
        rest.append(bound["per_sample_weights"])
    if any(user.target != operator.getitem or user.args[1] != 0 for user in node.users):
        return None
    weight, padding = value(bound["weight"]), bound.get("padding_idx")
    settings = {
        "num_embeddings": weight.shape[0],
        "embedding_dim": weight.shape[1],
        "mode": _BAG_MODES[bound["mode"]],
        "padding_idx": padding if padding is not None and padding >= 0 else None,
        "include_last_offset": bound["include_last_offset"],
        "scale_grad_by_freq": bound["scale_grad_by_freq"],
        "sparse": bound["sparse"],
    }
    raised = with_tensors(node, owners, nn.EmbeddingBag, settings, bound["indices"], bound["weight"], None)
    return None if raised is None else Raised(raised.path, (*raised.inputs, *rest))


def _prelu(node: Node, owners: Owners, record: Mapping[str, Any]) -> Raised | None:
    bound = arguments(node)
    settings = {"num_parameters": value(bound["weight"]).numel()}
    return weighted(node, owners, nn.PReLU, settings) if value(bound["weight"]).ndim == 1 else None


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
    base = path_inside(node, "dropout")
    p = float(record.get(base, {}).get("dropout", bound["p"]))
    return Raised(owners.place_free(base, owned(kind, {"p": p}, [])), (x,))


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
    path = owners.place_free(base, owned(ScaledDotProductAttention, settings, []))
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
    turned = isinstance(weight, Node) and weight.target in TRANSPOSITIONS
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
    return with_tensors(node, owners, nn.Linear, settings, x, source, bias, transposed=not turned)


def _only_products(read: Node) -> bool:
    """Whether every reader of a Parameter multiplies by it from the right."""
    readers = [u for n in read.graph.nodes if n.op == "get_attr" and n.target == read.target for u in n.users]
    place = {aten.addmm.default: 2, aten.mm.default: 1, aten.matmul.default: 1}
    return all(u.target in place and _reads(u.args[place[u.target]], read) for u in readers)


def _reads(argument: Any, read: Node) -> bool:
    return isinstance(argument, Node) and argument.op == "get_attr" and argument.target == read.target


RULES: dict[Any, Rule] = {
    **NORM_RULES,
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
    aten.conv_transpose1d.default: _conv,
    aten.conv_transpose2d.input: _conv,
    aten.conv_transpose3d.input: _conv,
    aten.prelu.default: _prelu,
    aten._prelu_kernel.default: _prelu,
    aten.embedding.default: _embedding,
    aten.embedding_bag.default: _embedding_bag,
    aten.embedding_bag.padding_idx: _embedding_bag,
    aten.dropout.default: _dropout,
    aten.native_dropout.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.alpha_dropout.default: _dropout,
    aten.scaled_dot_product_attention.default: _attention,
}
