"""Builds frozen dataclasses from parsed JSON, naming the key that does not fit."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from sparsify.errors import InvalidPlanError


def members(value: Any, where: str) -> Mapping[str, Any]:
    """Returns `value` as a JSON object.

    Raises:
        InvalidPlanError: `value` is something else.
    """
    if not isinstance(value, Mapping):
        raise InvalidPlanError(f"key '{where}': expected an object, found {type(value).__name__}")
    return value


def build(kind: type[Any], value: Any, where: str) -> Any:
    """Builds the dataclass `kind` from a JSON object, checking every key and type.

    Args:
        kind: Frozen dataclass with fields of scalars, optional scalars, tuples and dataclasses.
        value: Parsed JSON.
        where: Path of `value` in the document, for messages.

    Raises:
        InvalidPlanError: A key is missing, unknown, or of the wrong type; the message names its path.
    """
    data = members(value, where)
    hints = get_type_hints(kind)
    fields = dataclasses.fields(kind)
    name = data.get("fqn") or data.get("id")
    here = f"{where} ({name})" if isinstance(name, str) else where
    unknown = sorted(set(data) - {field.name for field in fields})
    if unknown:
        raise InvalidPlanError(f"key '{here}': unknown key {unknown[0]!r}")
    made = {}
    for field in fields:
        if field.name in data:
            made[field.name] = _convert(hints[field.name], data[field.name], f"{here}.{field.name}")
        elif field.default is dataclasses.MISSING:
            raise InvalidPlanError(f"key '{here}': {field.name!r} is missing")
    return kind(**made)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, options = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return _convert(next(option for option in options if option is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InvalidPlanError(f"key '{where}': expected a list, found {type(value).__name__}")
        return tuple(_convert(options[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InvalidPlanError(f"key '{where}': expected {kind.__name__}, found {value!r}")
    return value
