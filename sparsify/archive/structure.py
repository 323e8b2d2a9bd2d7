"""Output structures: archives hold plain containers, and beside them the class that a model returned.

A transformers ModelOutput is a registered pytree only where transformers is imported, so an archive that
holds one does not load in a fresh process.
"""

from __future__ import annotations

import importlib
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._pytree import TreeSpec

_PLAIN = (tuple, list, dict, OrderedDict)


def to_plain(spec: TreeSpec) -> tuple[TreeSpec, list[dict[str, Any]]]:
    """Replaces classes in an output structure by dict and tuple.

    Returns:
        The plain structure, and for every class its place (child indices from the root) and name.
    """
    classes: list[dict[str, Any]] = []
    return _plain(spec, (), classes), classes


def _plain(spec: TreeSpec, place: tuple[int, ...], classes: list[dict[str, Any]]) -> TreeSpec:
    if spec.is_leaf():
        return spec
    children = [_plain(child, (*place, i), classes) for i, child in enumerate(spec.children())]
    kind, context = spec.type, spec.context
    if kind in _PLAIN:
        return TreeSpec(kind, context, children)
    if kind is None or not isinstance(kind, type):
        return TreeSpec(tuple, None, children)
    classes.append({"place": list(place), "class": f"{kind.__module__}:{kind.__qualname__}"})
    keys = _keys(kind, context, len(children))
    return TreeSpec(tuple, None, children) if keys is None else TreeSpec(dict, keys, children)


def _keys(kind: type, context: Any, count: int) -> list[str] | None:
    if issubclass(kind, dict) and isinstance(context, Sequence) and len(context) == count:
        return [str(key) for key in context]
    return None


def restore(spec: TreeSpec, classes: Sequence[Mapping[str, Any]]) -> TreeSpec:
    """Puts ModelOutput classes back where they can be imported; other classes stay plain containers."""
    for entry in classes:
        kind = _model_output(str(entry.get("class", "")))
        if kind is not None:
            spec = _replaced(spec, list(entry.get("place", ())), kind)
    return spec


def _replaced(spec: TreeSpec, place: list[int], kind: type) -> TreeSpec:
    if not place:
        return TreeSpec(kind, spec.context, spec.children()) if spec.type is dict else spec
    children = list(spec.children())
    if not 0 <= place[0] < len(children):
        return spec
    children[place[0]] = _replaced(children[place[0]], place[1:], kind)
    return TreeSpec(spec.type, spec.context, children)


def _model_output(name: str) -> type | None:
    """The ModelOutput class of that name; an archive can have nothing else imported."""
    module_name, _, qualname = name.partition(":")
    if not module_name.startswith("transformers."):
        return None
    try:
        base = importlib.import_module("transformers.utils").ModelOutput
        importlib.import_module(module_name)
    except (ImportError, AttributeError):
        return None
    kind = getattr(sys.modules[module_name], qualname, None)
    return kind if isinstance(kind, type) and issubclass(kind, base) else None
