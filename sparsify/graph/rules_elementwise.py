"""Rules of operators that keep, broadcast or reduce shapes."""

from __future__ import annotations

from collections.abc import Callable

from sparsify.graph.dimensions import Call, Dimensions, Dims, Value, axis_of, tensor_arguments
from sparsify.graph.poly import Poly

Rule = Callable[[Call, Dimensions], Value]


def broadcast(call: Call, dimensions: Dimensions) -> Value:
    """All tensors broadcast together."""
    return dimensions.broadcast(tensor_arguments(call.node, dimensions), call.node)


def same(call: Call, dimensions: Dimensions) -> Value:
    """The result has the shape of the first argument."""
    return dimensions.tensor(call.node.args[0])


def same_several(call: Call, dimensions: Dimensions) -> Value:
    """Every result has the shape of the first argument."""
    shape = dimensions.tensor(call.node.args[0])
    return [shape for _ in call.node.target._schema.returns]  # type: ignore[union-attr]


def prelu(call: Call, dimensions: Dimensions) -> Value:
    """A slope for each channel."""
    x, weight = dimensions.tensor(call["self"]), dimensions.tensor(call["weight"])
    if weight and weight[0].constant != 1:
        dimensions.unify(x[1] if len(x) > 1 else x[0], weight[0], call.node)
    return x


def glu(call: Call, dimensions: Dimensions) -> Value:
    """Half of a dimension gates the other half."""
    x = dimensions.tensor(call["self"])
    axis = axis_of(call["dim"], len(x))
    half = dimensions.widths.fresh(dimensions.widths.value(x[axis]) // 2)
    dimensions.widths.layouts.made(x[axis], "product", (Poly(2), half))
    dimensions.unify(x[axis], half * 2, call.node)
    return (*x[:axis], half, *x[axis + 1 :])


def _reduced_axes(call: Call, rank: int) -> list[int]:
    given = call.get("dim")
    if given is None or given == []:
        return list(range(rank))
    return [axis_of(axis, rank) for axis in (given if isinstance(given, (list, tuple)) else [given])]


def _reduce(call: Call, dimensions: Dimensions) -> Dims:
    x = dimensions.tensor(call.node.args[0])
    axes = _reduced_axes(call, len(x))
    if call.get("keepdim"):
        return tuple(Poly(1) if axis in axes else size for axis, size in enumerate(x))
    return tuple(size for axis, size in enumerate(x) if axis not in axes)


def reduction(call: Call, dimensions: Dimensions) -> Value:
    """Reduces some dimensions, or all."""
    if "other" in call.values:
        return broadcast(call, dimensions)
    shape = _reduce(call, dimensions)
    returns = len(call.node.target._schema.returns)  # type: ignore[union-attr]
    if returns == 1:
        return shape
    _pin_positions(call, dimensions)
    return [shape] * returns


def moments(call: Call, dimensions: Dimensions) -> Value:
    """Variance or standard deviation, and mean."""
    shape = _reduce(call, dimensions)
    return [shape, shape]


def position(call: Call, dimensions: Dimensions) -> Value:
    """Reduces to positions in a dimension, which mean something only while it keeps its size."""
    _pin_positions(call, dimensions)
    return _reduce(call, dimensions)


def _pin_positions(call: Call, dimensions: Dimensions) -> None:
    x = dimensions.tensor(call.node.args[0])
    for axis in _reduced_axes(call, len(x)):
        dimensions.pin_axis(x, axis, f"{dimensions.where(call.node)} returns positions in it")


def ordered(call: Call, dimensions: Dimensions) -> Value:
    """Values and positions along a dimension."""
    x = dimensions.tensor(call.node.args[0])
    axis = axis_of(call["dim"] if call.get("dim") is not None else -1, len(x))
    if x:
        dimensions.pin_axis(x, axis, f"{dimensions.where(call.node)} returns positions in it")
    returns = len(call.node.target._schema.returns)  # type: ignore[union-attr]
    return x if returns == 1 else [x] * returns


def _table(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_table(
        broadcast,
        "__and__ __or__ __xor__ __lshift__ __rshift__ masked_fill where rsub true_divide divide "
        "multiply subtract maximum minimum max min greater less equal greater_equal less_equal "
        "not_equal float_power isclose copysign",
    ),
    **_table(
        same,
        "clone contiguous to _to_copy type_as detach alias lift_fresh lift_fresh_copy dropout "
        "alpha_dropout feature_dropout feature_alpha_dropout softmax _softmax log_softmax "
        "_log_softmax _safe_softmax softmin cumsum cumprod logcumsumexp flip roll triu tril "
        "zeros_like ones_like full_like empty_like rand_like randn_like randint_like bernoulli "
        "fill zero copy positive resolve_conj resolve_neg float half double bool long int square "
        "log_sigmoid logsigmoid mish selu celu elu rrelu hardsigmoid hardswish relu6 softplus "
        "softsign tanhshrink threshold nan_to_num clip arctan arcsin arccos isfinite absolute "
        "negative renorm real imag normal uniform exponential masked_scatter convert_element_type",
    ),
    **_table(same_several, "native_dropout log_sigmoid_forward cummax cummin"),
    **_table(
        reduction,
        "mean sum amax amin prod var std norm linalg_vector_norm logsumexp all any nansum nanmean "
        "count_nonzero max min median nanmedian aminmax frobenius_norm",
    ),
    **_table(moments, "var_mean std_mean"),
    **_table(position, "argmax argmin"),
    **_table(ordered, "sort argsort"),
    "prelu": prelu,
    "_prelu_kernel": prelu,
    "glu": glu,
}
