"""What is known of each operator's result when parts of its operands are known; in evaluation mode.

An operator without a rule gives nothing known, which is always true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from sparsify.graph.channel_rules import is_pointwise, reduced_axes
from sparsify.graph.constants import Constants, Known
from sparsify.graph.dimensions import CONVOLUTIONS, Call, axis_of, operator_name
from sparsify.graph.extents import Extents
from sparsify.graph.modules import ScaledDotProductAttention
from sparsify.graph.movement import moves

Rule = Callable[[Node, Constants], Sequence[Known]]
_UNPADDED: frozenset[Any] = frozenset({0, "valid"})


def constants(module: GraphModule, extents: Extents) -> Constants:
    """Known values of every node of a canonical graph, as it computes in evaluation mode.

    Args:
        module: Canonical graph module.
        extents: Sizes of its nodes on the example.
    """
    found = Constants(module, extents)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op != "output":
                found.store(node, _visit(node, found))
    return found


def _visit(node: Node, known: Constants) -> Sequence[Known]:
    if node.op == "placeholder":
        return []
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        tensor = getattr(known.module.get_submodule(owner), name)
        return [Known.all_of(tensor.detach())] if isinstance(tensor, Tensor) else []
    if node.op == "call_module":
        module = known.module.get_submodule(str(node.target))
        kind = next((kind for kind in type(module).__mro__ if kind in _MODULES), None)
        return _MODULES[kind](node, known) if kind is not None else []
    name = operator_name(node)
    if name == "getitem":
        return [known.of(node.args[0], int(node.args[1]))]  # type: ignore[arg-type]
    if moves(node):
        return known.moved(node)
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](node, known)
    return _pointwise(node, known) if is_pointwise(node) else []


def _pointwise(node: Node, known: Constants) -> Sequence[Known]:
    if operator_name(node) in ("clone", "to", "_to_copy") and node.args[0] in known.row_sums_one:
        known.row_sums_one.add(node)
    return known.computed(node)


def linear(x: Known, weight: Tensor, bias: Tensor | None) -> Known:
    """x·Wᵀ + b: an output is known where all inputs that it reads are.

    Args:
        x: Known part of the input [..., in].
        weight: [out, in].
        bias: [out], or None.
    """
    unknown = (~x.mask).to(weight.dtype).expand(*x.mask.shape[:-1], weight.shape[1])
    reached = F.linear(unknown, (weight != 0).to(weight.dtype)) > 0
    value = F.linear(x.value.to(weight.dtype).expand(unknown.shape), weight, bias)
    return Known(value.masked_fill(reached, 0), ~reached)


def convolve(x: Known, weight: Tensor, bias: Tensor | None, groups: int, padded: bool) -> Known:
    """A convolution of an input that is the same at every place.

    Args:
        x: Known part of the input [N, C, ...] or [C, ...].
        weight: [out, in/groups, ...].
        bias: [out], or None.
        groups: Groups.
        padded: Whether zeros are put around the input: then an input other than 0 changes at the border.
    """
    spatial = weight.ndim - 2
    axis = x.value.ndim - spatial - 1
    x = x.collapsed(range(axis + 1, x.value.ndim))
    if padded:
        x = x.where(x.value == 0)
    size = weight.shape[1] * groups
    rows = x.value.movedim(axis, -1).flatten(-spatial - 1).expand(*x.value.shape[:axis], size)
    mask = x.mask.movedim(axis, -1).flatten(-spatial - 1).expand(rows.shape)
    kernels = weight.flatten(2).sum(2)
    touches = (weight != 0).flatten(2).any(2).to(weight.dtype)
    reached = per_group((~mask).to(weight.dtype), touches, groups) > 0
    value = per_group(rows.to(weight.dtype), kernels, groups)
    value = value if bias is None else value + bias
    shape = (*value.shape, *[1] * spatial)
    return Known(value.masked_fill(reached, 0).view(shape), ~reached.view(shape))


def per_group(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Each group's own product: [..., in] with weights [out, in/groups] to [..., out]."""
    parts = x.reshape(*x.shape[:-1], groups, -1)
    matrices = weight.reshape(groups, -1, weight.shape[1])
    return torch.einsum("...gi,goi->...go", parts, matrices).flatten(-2)


def is_padded(module: nn.Module) -> bool:
    """Whether a convolution puts zeros around its input."""
    padding: Any = module.padding
    amounts = padding if isinstance(padding, (tuple, list)) else (padding,)
    return module.padding_mode == "zeros" and any(amount not in _UNPADDED for amount in amounts)


def _linear_module(node: Node, known: Constants) -> Sequence[Known]:
    module: Any = known.module.get_submodule(str(node.target))
    return [linear(known.of(node.args[0]), module.weight, module.bias)]


def _convolution_module(node: Node, known: Constants) -> Sequence[Known]:
    module: Any = known.module.get_submodule(str(node.target))
    if module.transposed:
        weight = module.weight.transpose(0, 1)
        one = module.groups == 1
        return [convolve(known.of(node.args[0]), weight, module.bias, 1, padded=True)] if one else []
    return [convolve(known.of(node.args[0]), module.weight, module.bias, module.groups, is_padded(module))]


def _functional_layer(node: Node, known: Constants) -> Sequence[Known]:
    call = Call.of(node)
    operands = [known.of(call[name]) if call[name] is not None else None for name in ("weight", "bias")]
    if any(operand is not None and not bool(operand.mask.all()) for operand in operands):
        return []
    weight, bias = (
        None if operand is None else operand.value.expand(known.extents.shape(call[name]))
        for name, operand in zip(("weight", "bias"), operands, strict=True)
    )
    if weight is None or weight.ndim < 2:
        return []
    if operator_name(node) == "linear":
        return [linear(known.of(call["input"]), weight, bias)]
    groups = call["groups"]
    if not isinstance(groups, int) or call.get("transposed") or "transpose" in str(node.target):
        return []
    padding = call["padding"]
    padded = padding != "valid" if isinstance(padding, str) else any(padding)
    return [convolve(known.of(call["input"]), weight, bias, groups, padded)]


def _embedding(node: Node, known: Constants) -> Sequence[Known]:
    table: Any = known.module.get_submodule(str(node.target)).weight
    same = (table == table[:1]).all(0)
    rank = len(known.extents.shape(node))
    return [
        Known(
            table[0].detach().masked_fill(~same, 0).view(*[1] * (rank - 1), -1),
            same.view(*[1] * (rank - 1), -1),
        )
    ]


def _batch_norm(node: Node, known: Constants) -> Sequence[Known]:
    """(x − μ)·γ/√(σ² + ε) + β, which is β where γ is 0."""
    module: Any = known.module.get_submodule(str(node.target))
    if module.running_mean is None or module.running_var is None:
        return []
    x = known.of(node.args[0])
    shape = [1, -1, *[1] * (x.value.ndim - 2)]
    scale = torch.rsqrt(module.running_var + module.eps)
    scale = scale if module.weight is None else scale * module.weight
    value = (x.value - module.running_mean.view(shape)) * scale.view(shape)
    value = value if module.bias is None else value + module.bias.view(shape)
    mask = x.mask | (scale == 0).view(shape)
    mask = mask.broadcast_to(value.shape)
    return [Known(value.masked_fill(~mask, 0), mask)]


def _same(node: Node, known: Constants) -> Sequence[Known]:
    if node.args[0] in known.row_sums_one:
        known.row_sums_one.add(node)
    return [known.of(node.args[0])]


def _prelu_module(node: Node, known: Constants) -> Sequence[Known]:
    x = known.of(node.args[0])
    slopes: Any = known.module.get_submodule(str(node.target)).weight
    shape = [1, -1, *[1] * (x.value.ndim - 2)] if x.value.ndim > 1 else [-1]
    value = torch.where(x.value > 0, x.value, x.value * slopes.detach().view(shape))
    return [Known(value, x.mask.broadcast_to(value.shape))]


def _padded(node: Node, known: Constants) -> Sequence[Known]:
    """Copies of entries around the last dimensions."""
    x = known.of(node.args[0])
    rank = x.value.ndim
    return [x.collapsed(range(rank - len(Call.of(node)["pad"]) // 2, rank))]


def _pooled(node: Node, known: Constants) -> Sequence[Known]:
    """A mean or a maximum of equal numbers; zeros that are averaged in change all but 0."""
    name = operator_name(node)
    x = known.of(node.args[0])
    x = x.collapsed(range(x.value.ndim - int(next(d for d in reversed(name) if d.isdigit())), x.value.ndim))
    call = Call.of(node)
    padding = call.get("padding", 0)
    averaged = name.startswith("avg_pool") and call.get("count_include_pad", True)
    if call.get("divisor_override") is not None:
        return [x.where(x.value == 0)]
    if averaged and any(padding if isinstance(padding, (list, tuple)) else [padding]):
        return [x.where(x.value == 0)]
    return [x]


def _reduction(node: Node, known: Constants) -> Sequence[Known]:
    """Mean and extremes of equal numbers; sums of zeros."""
    name, call = operator_name(node), Call.of(node)
    if "other" in call.values:
        return known.computed(node)
    x = known.of(node.args[0])
    axes = reduced_axes(node, x.value.ndim)
    if name == "sum":
        x = x.where(x.value == 0)
    x = x.collapsed(axes)
    if call.get("keepdim"):
        return [x]
    kept = [size for axis, size in enumerate(x.value.shape) if axis not in axes]
    return [Known(x.value.reshape(kept), x.mask.reshape(kept))]


def _softmax(node: Node, known: Constants) -> Sequence[Known]:
    """Notes that the entries of each row add up to 1."""
    rank = len(known.extents.shape(node))
    if axis_of(Call.of(node)["dim"], rank) == rank - 1:
        known.row_sums_one.add(node)
    return []


def _matmul(node: Node, known: Constants) -> Sequence[Known]:
    """Weighted means of equal numbers, where the weights add up to 1; products with zeros."""
    left, right = node.args[0], node.args[1]
    return [_averaged(node, right, known, exact=left in known.row_sums_one)]


def _averaged(node: Node, source: Any, known: Constants, *, exact: bool) -> Known:
    x, rank = known.of(source), len(known.extents.shape(node))
    if x.value.ndim != rank or rank < 3:
        return Known.nothing(rank)
    x = x.collapsed([rank - 2])
    x = x if exact else x.where(x.value == 0)
    heads, out = known.extents.shape(source)[rank - 3], known.extents.shape(node)[rank - 3]
    if x.value.shape[rank - 3] > 1 and out != heads:
        repeat = out // heads
        return Known(*(part.repeat_interleave(repeat, rank - 3) for part in (x.value, x.mask)))
    return x


def _attention(node: Node, known: Constants) -> Sequence[Known]:
    """Values that are the same at every key; with a mask a query may see no key, and get 0."""
    value = node.args[2] if len(node.args) > 2 else node.kwargs["value"]
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return [_averaged(node, value, known, exact=mask is None)]


def _filled(node: Node, known: Constants) -> Sequence[Known]:
    name, call = operator_name(node), Call.of(node)
    fill = call.get("fill_value", 1.0 if "ones" in name else 0.0)
    if not isinstance(fill, (int, float)):
        return []
    shape = (1,) * len(known.extents.shape(node))
    return [Known.all_of(torch.full(shape, fill, dtype=known.extents.dtype(node)))]


_POOLS = [f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)]
_POOLS += [f"max_pool{n}d_with_indices" for n in (1, 2, 3)] + ["_adaptive_avg_pool2d"]
_POOLS += [f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)]
_POOLS += ["upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "_upsample_nearest_exact2d"]
_FUNCTIONS: Mapping[str, Rule] = {
    **dict.fromkeys(("linear", *CONVOLUTIONS), _functional_layer),
    **dict.fromkeys(_POOLS, _pooled),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduction),
    **dict.fromkeys(("softmax", "_softmax"), _softmax),
    **dict.fromkeys(("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), _filled),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like"), _filled),
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    "scaled_dot_product_attention": _attention,
    "pad": _padded,
}
_MODULES: Mapping[type[nn.Module], Rule] = {
    nn.Linear: _linear_module,
    nn.modules.conv._ConvNd: _convolution_module,
    nn.Embedding: _embedding,
    nn.modules.batchnorm._BatchNorm: _batch_norm,
    nn.modules.dropout._DropoutNd: _same,
    nn.PReLU: _prelu_module,
    ScaledDotProductAttention: _attention,
}
