"""The call of a graph: argument names, and the pytrees of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Graph
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils._pytree import TreeSpec


class Signature(_PyTreeCodeGen):
    """FX's code generator for pytrees, which is copied without copying the trees (they never change).

    Args:
        names: Argument names of forward, positional ones first.
        in_spec: Structure of (args, kwargs).
        out_spec: Structure of what is returned.
    """

    def __init__(self, names: Sequence[str], in_spec: TreeSpec, out_spec: TreeSpec | None) -> None:
        super().__init__(_PyTreeInfo(list(names), in_spec, out_spec))

    def __deepcopy__(self, memo: dict[int, Any]) -> Signature:
        return Signature(self.names, self.in_spec, self.out_spec)

    @property
    def names(self) -> list[str]:
        """Argument names of forward."""
        return list(self.pytree_info.orig_args)

    @property
    def in_spec(self) -> TreeSpec:
        """Structure of (args, kwargs)."""
        return self.pytree_info.in_spec

    @property
    def out_spec(self) -> TreeSpec | None:
        """Structure of what is returned."""
        return self.pytree_info.out_spec

    def returning(self, out_spec: TreeSpec | None) -> Signature:
        """The same call with another structure of outputs; the leaves must be the same."""
        return Signature(self.names, self.in_spec, out_spec)


def signature_of(graph: Graph) -> Signature:
    """The call of a canonical graph, or of a copy that torch made of one."""
    codegen = graph._codegen
    if isinstance(codegen, Signature):
        return codegen
    info: _PyTreeInfo = codegen.pytree_info  # type: ignore[attr-defined]
    return Signature(info.orig_args, info.in_spec, info.out_spec)
