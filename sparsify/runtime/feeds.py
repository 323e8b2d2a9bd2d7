"""Makes up inputs for any ONNX model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from sparsify.errors import UserError

DEFAULT_SIZE = 128
_THROUGH = ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Slice", "Expand")
Array = np.ndarray[Any, np.dtype[Any]]


def make_feeds(
    model: onnx.ModelProto, batch: int, *, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Array]:
    """Random inputs of a given batch size.

    Floats are standard normal. Integers are valid indices where they are looked up in a table; positions
    count up, masks and other integers are ones.

    Args:
        model: The model; external data need not be loaded.
        batch: Size of the first dimension of every input, and of dimensions with the same symbol.
        sizes: Sizes of other dynamic dimensions by symbol; 128 where not given.
        seed: Seed of the random numbers.

    Returns:
        An array for every input.

    Raises:
        UserError: The batch size does not fit a fixed first dimension, or an input has an unknown rank.
    """
    rng = np.random.default_rng(seed)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    known = dict(sizes or {}) | {symbol: batch for symbol in map(_batch_symbol, inputs) if symbol}
    return {value.name: _values(value, _shape(value, batch, known), model, rng) for value in inputs}


def _batch_symbol(value: onnx.ValueInfoProto) -> str:
    dims = value.type.tensor_type.shape.dim
    return str(dims[0].dim_param) if dims else ""


def _shape(value: onnx.ValueInfoProto, batch: int, known: Mapping[str, int]) -> list[int]:
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise UserError(f"input {value.name!r} has no shape in the model, so inputs cannot be made up for it")
    shape = []
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value"):
            if axis == 0 and dim.dim_value != batch:
                raise UserError(
                    f"input {value.name!r} has a fixed first dimension of {dim.dim_value}, so batch {batch} "
                    "cannot be run; export the model with a dynamic batch, or ask for that batch"
                )
            shape.append(int(dim.dim_value))
        elif axis == 0:
            shape.append(batch)
        else:
            shape.append(known.get(dim.dim_param, DEFAULT_SIZE))
    return shape


def _values(
    value: onnx.ValueInfoProto, shape: list[int], model: onnx.ModelProto, rng: np.random.Generator
) -> Array:
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    if dtype.kind not in "fbiu":
        raise UserError(f"input {value.name!r} is of type {dtype}: inputs can be made up for numbers only")
    sizes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return draw(value.name, dtype, shape, smallest_table(model, value.name, sizes), rng)


def draw(
    name: str, dtype: np.dtype[Any], shape: Sequence[int], entries: int | None, rng: np.random.Generator
) -> Array:
    """Values for one input.

    Args:
        name: Its name; one with "mask" or "position" in it says what the integers are.
        dtype: Its type, of a number or bool.
        shape: Its shape.
        entries: Entries of the table that it is looked up in, if it is.
        rng: Source of random numbers.

    Returns:
        Standard normal floats; ones for masks and for integers that are no index; positions that count up;
        other integers below `entries`.
    """
    if dtype.kind not in "iub":
        return rng.standard_normal(shape, dtype=np.float32).astype(dtype)
    if dtype.kind == "b" or "mask" in name.lower():
        return np.ones(shape, dtype)
    if "position" in name.lower() and shape:
        return np.broadcast_to(np.arange(shape[-1]) % (entries or shape[-1]), shape).astype(dtype)
    return np.ones(shape, dtype) if entries is None else rng.integers(0, entries, shape).astype(dtype)


def smallest_table(model: onnx.ModelProto, name: str, sizes: Mapping[str, Sequence[Any]]) -> int | None:
    """Entries of the smallest table that an integer input is looked up in, through casts and reshapes.

    Args:
        model: The model, its nodes in order of execution.
        name: The input.
        sizes: Shapes of values that may be tables.
    """
    names, found = {name}, []
    for node in model.graph.node:
        if node.op_type in _THROUGH and node.input[0] in names:
            names.add(node.output[0])
        elif node.op_type == "Gather" and node.input[1] in names:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            shape = sizes.get(node.input[0], ())
            size = shape[axis] if -len(shape) <= axis < len(shape) else None
            found += [int(size)] if isinstance(size, int) else []
    return min(found, default=None)
