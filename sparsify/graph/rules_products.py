"""Rules of matrix products, attention and functional layers.

A product of two activations is attention or something like it: its scale, and what its rows and columns mean,
belong to their sizes. So all but the batch dimensions of such a product keep their sizes: head sizes stay,
head counts grow. A product with a parameter couples what it contracts and nothing else.
"""

from __future__ import annotations

from torch.fx import Node

from sparsify.graph.dimensions import (
    CONVOLUTIONS,
    Call,
    Dimensions,
    Dims,
    Unsolved,
    Value,
    module_path,
)
from sparsify.graph.poly import Poly
from sparsify.graph.rules_elementwise import Rule


def both_activations(dimensions: Dimensions, *arguments: Node) -> bool:
    """Whether all arguments depend on the model's inputs."""
    return all(argument in dimensions.data for argument in arguments)


def pin_head(dimensions: Dimensions, node: Node, sizes: Dims, *, batch: Dims = ()) -> None:
    """Fixes what a product of activations contracts or spans.

    Args:
        dimensions: The equations to add to.
        node: The product.
        sizes: What it contracts and spans.
        batch: Its batch dimensions, the samples first; heads are among the others.
    """
    path = module_path(node)
    one = batch and all(size.constant == 1 for size in batch[1:])
    more = "; there is one head only, and a single head cannot grow" if one else ""
    dimensions.pin(sizes, f"head size of the product of activations{' in ' + path if path else ''}{more}")


def matmul(call: Call, dimensions: Dimensions) -> Value:
    """Product over the last dimension of the first and the last but one of the second."""
    a, b = call.node.args[:2]
    return product_of(call.node, a, b, dimensions)  # type: ignore[arg-type]


def product_of(node: Node, a: Node, b: Node, dimensions: Dimensions) -> Dims:
    """Shape of ``a @ b``."""
    left, right = dimensions.tensor(a), dimensions.tensor(b)
    if not left or not right:
        raise Unsolved("an operand is a scalar")
    inner = right[-2] if len(right) > 1 else right[-1]
    dimensions.unify(left[-1], inner, node)
    if both_activations(dimensions, a, b):
        pin_head(dimensions, node, (*left[-2:], *right[-2:]), batch=left[:-2])
    batch = dimensions.broadcast([left[:-2], right[:-2]], node)
    return (*batch, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))


def addmm(call: Call, dimensions: Dimensions) -> Value:
    """A product plus something that broadcasts to it."""
    names = ("mat1", "mat2") if "mat1" in call.values else ("batch1", "batch2")
    shape = product_of(call.node, call[names[0]], call[names[1]], dimensions)
    return dimensions.broadcast([shape, dimensions.tensor(call["self"])], call.node)


def linear(call: Call, dimensions: Dimensions) -> Value:
    """x·Wᵀ + b for W [out, in]."""
    x, weight = dimensions.tensor(call["input"]), dimensions.tensor(call["weight"])
    dimensions.unify(x[-1], weight[-1], call.node)
    if both_activations(dimensions, call["input"], call["weight"]):
        pin_head(dimensions, call.node, (x[-1], *weight))
    if call["bias"] is not None:
        dimensions.unify(weight[0], dimensions.tensor(call["bias"])[0], call.node)
    return (*x[:-1], *weight[:-1])


def attention(call: Call, dimensions: Dimensions) -> Value:
    """Scaled dot-product attention: [..., h, q, d], [..., h, k, d], [..., h, k, e] to [..., h, q, e]."""
    shapes = [dimensions.tensor(call[name]) for name in ("query", "key", "value")]
    return attend(call.node, shapes, call["attn_mask"], bool(call["enable_gqa"]), dimensions)


def attend(node: Node, shapes: list[Dims], mask: Node | None, grouped: bool, dimensions: Dimensions) -> Dims:
    """Shape of attention; with ``grouped``, queries have a fixed multiple of the keys' heads."""
    query, key, value = shapes
    pin_head(dimensions, node, (query[-1], key[-1], value[-1]), batch=query[:-2])
    dimensions.unify(query[-1], key[-1], node)
    dimensions.unify(key[-2], value[-2], node)
    if grouped and len(query) > 2:
        heads, shared = query[-3], key[-3]
        dimensions.unify(shared, value[-3], node)
        ratio = dimensions.widths.value(heads) // dimensions.widths.value(shared)
        dimensions.widths.layouts.made(heads, "product", (shared, Poly(ratio)))
        dimensions.unify(heads, shared * ratio, node)
        batch = (*dimensions.broadcast([query[:-3], key[:-3], value[:-3]], node), heads)
    else:
        batch = dimensions.broadcast([query[:-2], key[:-2], value[:-2]], node)
    if mask is not None:
        dimensions.broadcast([dimensions.tensor(mask), (*batch, query[-2], key[-2])], node)
    return (*batch, query[-2], value[-1])


def einsum(call: Call, dimensions: Dimensions) -> Value:
    """An Einstein sum; letters that every operand and the result share are its batch."""
    equation, operands = call["equation"].replace(" ", ""), list(call["tensors"])
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    if "." in equation or not arrow:
        raise Unsolved("an einsum without letters for every dimension")
    sizes: dict[str, Poly] = {}
    for term, operand in zip(letters, operands, strict=True):
        for letter, size in zip(term, dimensions.tensor(operand), strict=True):
            known = sizes.setdefault(letter, size)
            if known.constant == 1:
                sizes[letter] = size
            elif size.constant != 1:
                dimensions.unify(known, size, call.node)
    if len(operands) > 1 and sum(operand in dimensions.data for operand in operands) > 1:
        spanned = [s for letter, s in sizes.items() if not all(letter in term for term in [*letters, result])]
        pin_head(dimensions, call.node, tuple(spanned))
    return tuple(sizes[letter] for letter in result)


def outer(call: Call, dimensions: Dimensions) -> Value:
    """Every product of two vectors' entries."""
    left, right = dimensions.tensor(call["self"]), dimensions.tensor(call["vec2"])
    return (*left, *right)


def convolve(
    node: Node, x: Dims, weight: Dims, groups: Poly | int, dimensions: Dimensions, *, transposed: bool = False
) -> Dims:
    """Shape of a convolution.

    Args:
        node: The call, whose recorded shape has the resolution.
        x: Input [N, C, ...] or [C, ...].
        weight: Weight [out, in/groups, ...]; [in, out/groups, ...] when transposed.
        groups: Groups; as many as channels in a depthwise layer.
        dimensions: The equations to add to.
        transposed: Whether it is a transposed convolution.
    """
    spatial = len(weight) - 2
    dimensions.pin((*weight[2:], *x[len(x) - spatial :]), "extent in space, not a width")
    channels = x[-spatial - 1]
    if transposed:
        dimensions.unify(channels, weight[0], node)
        out = _backward_channels(weight, groups, dimensions)
    else:
        out = _forward_channels(node, channels, weight, groups, dimensions)
    return (*x[: len(x) - spatial - 1], out, *dimensions.present(node)[len(x) - spatial :])


def _forward_channels(
    node: Node, channels: Poly, weight: Dims, groups: Poly | int, dimensions: Dimensions
) -> Poly:
    depthwise = weight[1].constant == 1 and groups != 1
    if depthwise:
        multiplier = dimensions.widths.value(weight[0]) // dimensions.widths.value(channels)
        if multiplier > 1:
            dimensions.widths.layouts.made(weight[0], "product", (channels, Poly(multiplier)))
        dimensions.unify(weight[0], channels * multiplier, node)
        return weight[0]
    if groups == 1:
        dimensions.unify(channels, weight[1], node)
    else:
        dimensions.unify(dimensions.part(channels, int(groups)), weight[1], node)  # type: ignore[arg-type]
        dimensions.part(weight[0], int(groups))  # type: ignore[arg-type]
    return weight[0]


def _backward_channels(weight: Dims, groups: Poly | int, dimensions: Dimensions) -> Poly:
    """Output channels of a transposed convolution; those of a depthwise one are its input's."""
    if groups == 1:
        return weight[1]
    present = dimensions.widths.value(groups) if isinstance(groups, Poly) else groups
    if weight[1].constant == 1 and dimensions.widths.value(weight[0]) == present:
        return weight[0]
    count = int(groups)  # type: ignore[arg-type]
    dimensions.part(weight[0], count)
    return dimensions.widths.flattened((Poly(count), weight[1]))


def convolution(call: Call, dimensions: Dimensions) -> Value:
    """A convolution whose weight is an operand."""
    x, weight = dimensions.tensor(call["input"]), dimensions.tensor(call["weight"])
    transposed = bool(call.get("transposed")) or "transpose" in str(call.node.target)
    groups: Poly | int = call["groups"]
    depthwise = groups != 1 and weight[1].constant == 1
    if depthwise and (not transposed or groups == dimensions.widths.value(weight[0])):
        literal = dimensions.size(groups, call.node, call.paths["groups"])
        groups = dimensions.unify(literal, x[1 - len(weight)], call.node)
    if both_activations(dimensions, call["input"], call["weight"]):
        pin_head(dimensions, call.node, weight)
    shape = convolve(call.node, x, weight, groups, dimensions, transposed=transposed)
    if call["bias"] is not None:
        dimensions.unify(shape[1 - len(weight)], dimensions.tensor(call["bias"])[0], call.node)
    return shape


RULES: dict[str, Rule] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner"), matmul),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm"), addmm),
    "linear": linear,
    "scaled_dot_product_attention": attention,
    "einsum": einsum,
    "outer": outer,
    **dict.fromkeys(CONVOLUTIONS, convolution),
}
