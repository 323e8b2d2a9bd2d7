"""What a model is called with: enough to make example inputs again and to say which dimensions are open."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim
from torch.fx import GraphModule
from torch.utils._pytree import tree_map, tree_unflatten

from sparsify.errors import UserError
from sparsify.graph.canonical_clean import is_open
from sparsify.graph.signature import signature_of
from sparsify.graph.traced import Traced

_OPEN_BATCH, _OPEN_LENGTH = 2, 16
_DESCRIPTION = re.compile(r"^\s*(?P<name>[A-Za-z_]\w*)\s*:\s*(?P<dtype>\w+)\s*\[(?P<dims>[^\]]*)\]\s*$")
_DIMENSION = re.compile(r"^(?:(?P<name>[A-Za-z_]\w*)(?:=(?P<example>[1-9]\d*))?|(?P<size>\d+))$")


@dataclass(frozen=True)
class TensorInput:
    """One tensor among the inputs.

    Attributes:
        shape: Sizes of the example.
        dtype: Name of the dtype, `float32`.
        dynamic: (dimension, name) for every open dimension; equal names are equal sizes.
    """

    shape: tuple[int, ...]
    dtype: str
    dynamic: tuple[tuple[int, str], ...] = ()

    def example(self) -> Tensor:
        """Zeros of this shape and dtype."""
        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class InputSpec:
    """Inputs of a model, as a tree of TensorInput and constants in the structure of the call.

    Attributes:
        names: Parameter names of forward for `args`.
        args: Positional inputs.
        kwargs: Keyword inputs.
    """

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def from_traced(cls, traced: Traced) -> InputSpec:
        """Reads the inputs of a traced model."""
        return cls.from_graph(traced.module)

    @classmethod
    def from_graph(cls, module: GraphModule) -> InputSpec:
        """Reads the inputs of a canonical graph from its placeholders."""
        signature = signature_of(module.graph)
        leaves = [_leaf(node.meta.get("val")) for node in module.graph.find_nodes(op="placeholder")]
        args, kwargs = tree_unflatten(leaves, signature.in_spec)
        return cls(tuple(signature.names[: len(args)]), tuple(args), dict(kwargs))

    @classmethod
    def parse(cls, descriptions: Sequence[str]) -> InputSpec:
        """Reads inputs as a command line gives them, one `name:dtype[sizes]` each; all are passed by name.

        Raises:
            UserError: For a description that cannot be read, or a name given twice.
        """
        parsed = [parse_input(text) for text in descriptions]
        kwargs = dict(parsed)
        if len(kwargs) != len(parsed):
            raise UserError(f"two inputs have the same name: {', '.join(name for name, _ in parsed)}")
        return cls((), (), kwargs)

    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Example (args, kwargs): zeros of the right shapes and dtypes."""
        return _examples(self.args), _examples(dict(self.kwargs))

    def dynamic_shapes(self) -> dict[str, Any]:
        """Open dimensions in the form that torch.export.export takes."""
        named = dict(zip(self.names, self.args, strict=True)) | dict(self.kwargs)
        return {name: tree_map(_open_dims, item, is_leaf=_is_tensor) for name, item in named.items()}

    def to_json(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "names": list(self.names),
            "args": [_to_json(item) for item in self.args],
            "kwargs": {name: _to_json(item) for name, item in self.kwargs.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputSpec:
        """Reads what `to_json` made.

        Raises:
            UserError: When it is not of that form.
        """
        try:
            return cls(
                tuple(data["names"]),
                tuple(_from_json(item) for item in data["args"]),
                {name: _from_json(item) for name, item in data["kwargs"].items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the description of the model's inputs is damaged: {error!r}") from error


def parse_input(text: str) -> tuple[str, TensorInput]:
    """Reads `name:float32[batch,3,224,224]`; a named dimension is open, `length=128` gives its example size.

    Raises:
        UserError: When the text is not of that form.
    """
    match = _DESCRIPTION.match(text)
    if match is None:
        raise UserError(f"cannot read the input '{text}'; write it as name:float32[batch,3,224,224]")
    dtype = getattr(torch, match["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(
            f"input '{text}': there is no dtype '{match['dtype']}'; float32 and int64 are the usual ones"
        )
    shape: list[int] = []
    dynamic: list[tuple[int, str]] = []
    for position, part in enumerate(p.strip() for p in match["dims"].split(",") if p.strip()):
        dimension = _DIMENSION.match(part)
        if dimension is None:
            raise UserError(f"input '{text}': '{part}' is neither a size nor the name of an open dimension")
        if dimension["size"] is not None:
            shape.append(int(dimension["size"]))
        else:
            dynamic.append((position, dimension["name"]))
            default = _OPEN_LENGTH if position else _OPEN_BATCH
            shape.append(int(dimension["example"] or default))
    return match["name"], TensorInput(tuple(shape), str(dtype).removeprefix("torch."), tuple(dynamic))


def _leaf(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    dynamic = tuple((d, str(s)) for d, s in enumerate(value.shape) if is_open(s))
    return TensorInput(tuple(_size(s) for s in value.shape), str(value.dtype).removeprefix("torch."), dynamic)


def _size(size: Any) -> int:
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        return int(hint) if hint is not None else _OPEN_LENGTH
    return int(size)


def _is_tensor(item: Any) -> bool:
    return isinstance(item, TensorInput)


def _examples(tree: Any) -> Any:
    return tree_map(lambda x: x.example() if isinstance(x, TensorInput) else x, tree, is_leaf=_is_tensor)


def _open_dims(item: Any) -> Any:
    return {dim: Dim.AUTO for dim, _ in item.dynamic} if isinstance(item, TensorInput) else None


def _to_json(item: Any) -> Any:
    if isinstance(item, TensorInput):
        return {
            "tensor": {
                "shape": list(item.shape),
                "dtype": item.dtype,
                "dynamic": [list(d) for d in item.dynamic],
            }
        }
    if type(item) in (list, tuple):
        return {type(item).__name__: [_to_json(child) for child in item]}
    if type(item) is dict and all(isinstance(key, str) for key in item):
        return {"dict": {key: _to_json(child) for key, child in item.items()}}
    if item is None or (isinstance(item, (bool, int, float, str)) and not _is_infinite(item)):
        return {"value": item}
    raise UserError(
        f"an input of type {type(item).__name__} cannot be stored; use tensors, numbers, strings, and "
        f"tuples, lists "
        "and dicts of them"
    )


def _is_infinite(item: Any) -> bool:
    return isinstance(item, float) and not math.isfinite(item)


def _from_json(data: Mapping[str, Any]) -> Any:
    ((kind, content),) = data.items()
    if kind == "tensor":
        dynamic = tuple((int(dim), str(name)) for dim, name in content["dynamic"])
        return TensorInput(tuple(int(s) for s in content["shape"]), str(content["dtype"]), dynamic)
    if kind == "dict":
        return {key: _from_json(child) for key, child in content.items()}
    if kind in ("list", "tuple"):
        children = [_from_json(child) for child in content]
        return children if kind == "list" else tuple(children)
    if kind == "value":
        return content
    raise KeyError(kind)
