"""Names for what a model returns, taken from the structure that it returns it in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


def output_names(result: Any, taken: Sequence[str] = ()) -> list[str]:
    """One name a tensor, in the order in which torch.export flattens them.

    Keys of mappings and of ModelOutputs name their entries; entries of sequences are numbered; a single
    tensor is `output`.

    Args:
        result: What the model returned on example inputs.
        taken: Names that may not be used, those of the inputs.
    """
    names: list[str] = []
    for path in _paths(result):
        keyed = path if path and isinstance(path[0], str) else ("output", *path)
        name = re.sub(r"\W", "_", "_".join(str(item) for item in keyed))
        while name in names or name in taken:
            name += "_out"
        names.append(name)
    return names


def tensors_of(result: Any) -> list[torch.Tensor]:
    """Tensors of a returned structure, in the same order as `output_names`."""
    found: list[torch.Tensor] = []
    for path in _paths(result):
        value = result
        for key in path:
            value = value[key]
        found.append(value)
    return found


def _paths(value: Any, prefix: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, torch.Tensor):
        yield prefix
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _paths(item, (*prefix, key))
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from _paths(item, (*prefix, position))
