"""From a word to groups: `filters`, `heads`, `4x1`; with the graph where there is one."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast, get_args

from torch import Tensor, nn

from sparsify.dst.group_layers import layer_groups, tile_groups
from sparsify.dst.group_units import UnitKind, unit_groups
from sparsify.dst.groups import Groups
from sparsify.errors import UserError
from sparsify.graph.trace import trace
from sparsify.graph.traced import Traced
from sparsify.masks import SparseGraphModule, unwrapped

Example = Sequence[Any] | Tensor | None


def find_groups(
    model: nn.Module,
    kind: str = "units",
    *,
    example: Example = None,
    only: Sequence[str] = (),
    keep_dense: Sequence[str] = (),
) -> Groups:
    """Groups of one kind in a model.

    Units come from the model's graph, and then only those are offered that `narrow` can take out. Models from
    `transform` and `load` carry an example of their inputs; give one for another module. Without it, groups
    are the outputs of single layers as far as they can be told.

    Args:
        model: A plain or masked model.
        kind: `units` (all kinds that follow), `neurons` of linear layers, `filters` of convolutions, `heads`,
            `ffn` (neurons off every residual stream); `channels` (inputs of convolutions); `RxC` blocks;
            `weights`.
        example: Positional inputs of a call, or the one tensor.
        only: Layers that take part, by fqn with wildcards; all without.
        keep_dense: Layers that do not.

    Raises:
        UserError: The kind is unknown, a pattern matches no layer, or there are no groups.
        UnsupportedModelError: The model cannot be captured.
    """
    model = unwrapped(model)
    chosen = _chooser(model, only, keep_dense)
    if kind == "weights" or re.fullmatch(r"\d+x\d+", kind):
        return tile_groups(model, kind, chosen)
    if kind not in get_args(UnitKind):
        known = ", ".join((*get_args(UnitKind), "weights", "RxC"))
        raise UserError(f"unknown kind of groups {kind!r}; known are {known}")
    traced = _traced(model, example)
    if traced is None:
        return layer_groups(model, kind, chosen)
    return unit_groups(model, traced, cast(UnitKind, kind), chosen)


def _traced(model: nn.Module, example: Example) -> Traced | None:
    if example is not None:
        return trace(model, (example,) if isinstance(example, Tensor) else tuple(example))
    if not isinstance(model, SparseGraphModule):
        return None
    inputs = model.sparsify.inputs
    args, kwargs = inputs.example()
    return trace(model, args, kwargs, dynamic_shapes=inputs.dynamic_shapes())


def _chooser(model: nn.Module, only: Sequence[str], keep_dense: Sequence[str]) -> Callable[[str], bool]:
    layers = [path for path, module in model.named_modules() if "weight" in module._parameters]
    for pattern in (*only, *keep_dense):
        if not any(fnmatchcase(path, pattern) for path in layers):
            some = ", ".join(layers[:6])
            raise UserError(f"{pattern!r} matches no layer of the model; it has {some}, …")

    def chosen(path: str) -> bool:
        wanted = not only or any(fnmatchcase(path, pattern) for pattern in only)
        return wanted and not any(fnmatchcase(path, pattern) for pattern in keep_dense)

    return chosen
