"""Which channels belong together: every place in a width that may change, followed through the graph.

`facts` says which dimensions have one width; this says which place in one is which place in another. Every
place in a dimension of a parameter is an atom. Operators state that places are the same channel, and atoms
are merged. Where an operator would compute something else with a channel fewer (a mean over it, a norm over
it), the channel is blocked, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from sparsify.graph.dimensions import module_path, operator_name
from sparsify.graph.extents import Extents
from sparsify.graph.facts import Facts
from sparsify.graph.movement import along, apply, tensor_inputs

#: Atoms along those dimensions of a tensor that follow a width which may change.
Labels = Mapping[int, Tensor]


class Channels:
    """Atoms of every value, and which of them are one channel.

    Attributes:
        module: The canonical graph module.
        extents: Sizes on the example.
        blocked: Atoms that must stay, with the reason.
    """

    def __init__(self, module: GraphModule, facts: Facts, extents: Extents) -> None:
        self.module, self.extents = module, extents
        self.blocked: list[tuple[Tensor, str]] = []
        self._parent: list[int] = []
        self._values: dict[Node, list[Labels]] = {}
        self._tensors: dict[int, Labels] = {}
        self._dims = facts.parameters

    def tensor(self, path: str) -> Labels:
        """Atoms of a parameter, or of a buffer that follows a width."""
        owner, _, name = path.rpartition(".")
        tensor = getattr(self.module.get_submodule(owner), name)
        if id(tensor) not in self._tensors:
            self._tensors[id(tensor)] = {
                axis: self.fresh(tensor.shape[axis])
                for axis, size in enumerate(self._dims.get(path, ()))
                if size.constant is None
            }
        return self._tensors[id(tensor)]

    def of(self, node: object, item: int = 0) -> Labels:
        """Atoms of what a visited node computes; none for what is no node."""
        return self._values[node][item] if isinstance(node, Node) else {}

    def fresh(self, count: int) -> Tensor:
        """New atoms."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def root(self, atom: int) -> int:
        """The atom that stands for a channel."""
        while self._parent[atom] != atom:
            self._parent[atom] = self._parent[self._parent[atom]]
            atom = self._parent[atom]
        return atom

    def roots(self, atoms: Tensor) -> list[int]:
        """The channel of each atom."""
        return [self.root(atom) for atom in atoms.tolist()]

    def same(self, left: Tensor | None, right: Tensor | None, node: Node) -> None:
        """States that two runs of places are the same channels; blocks what is tied to something else."""
        known = [atoms for atoms in (left, right) if atoms is not None]
        if left is None or right is None or left.numel() != right.numel():
            for atoms in known:
                self.block(atoms, f"{where(node)} ties it to something of a fixed size")
            return
        if left is right or torch.equal(left, right):
            return
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            one, other = self.root(a), self.root(b)
            if one != other:
                self._parent[max(one, other)] = min(one, other)

    def merge(self, atoms: Iterable[int]) -> None:
        """States that atoms are one channel."""
        found = [self.root(atom) for atom in atoms]
        for atom in found[1:]:
            one, other = self.root(found[0]), self.root(atom)
            self._parent[max(one, other)] = min(one, other)

    def block(self, atoms: Tensor, reason: str) -> None:
        """Says why channels must stay."""
        self.blocked.append((atoms, reason))

    def block_all(self, labels: Labels, reason: str, axes: Iterable[int] | None = None) -> None:
        """Says why all channels of a value, or those along some of its dimensions, must stay."""
        for axis, atoms in labels.items():
            if axes is None or axis in axes:
                self.block(atoms, reason)

    def store(self, node: Node, values: Sequence[Labels]) -> None:
        """Notes the atoms of a node's results; a dimension that may change and has none gets new ones."""
        stored: list[Labels] = []
        variable, shapes = self.extents.variable(node), self.extents.shapes(node)
        for item, (axes, shape) in enumerate(zip(variable, shapes, strict=True)):
            given = values[item] if item < len(values) else {}
            for axis in set(given) - set(axes):
                self.block(given[axis], f"{where(node)} ties it to something of a fixed size")
            stored.append({axis: given[axis] if axis in given else self.fresh(shape[axis]) for axis in axes})
        self._values[node] = stored

    def unknown(self, node: Node) -> list[Labels]:
        """Blocks what an operator touches, in and out: nobody says that it works with fewer channels."""
        reason = f"{where(node)} is not known to work with fewer channels"
        for source in tensor_inputs(node, self.extents):
            self.block_all(self.of(source), reason)
        found: list[Labels] = []
        for axes, shape in zip(self.extents.variable(node), self.extents.shapes(node), strict=True):
            found.append({axis: self.fresh(shape[axis]) for axis in axes})
            self.block_all(found[-1], reason)
        return found

    def broadcast(self, node: Node, sources: Sequence[Node]) -> Labels:
        """Atoms of tensors that are combined element by element; places that meet are the same channel."""
        rank = max((len(self.extents.shape(source)) for source in sources), default=0)
        result: dict[int, Tensor] = {}
        for axis in range(rank):
            met = []
            for source in sources:
                own = axis - rank + len(self.extents.shape(source))
                if own >= 0 and self.extents.shape(source)[own] != 1:
                    met.append(self.of(source).get(own))
            labelled = [atoms for atoms in met if atoms is not None]
            if labelled:
                result[axis] = labelled[0]
                for atoms in met:
                    self.same(labelled[0], atoms, node)
        return result

    def moved(self, node: Node) -> list[Labels]:
        """Atoms of what an operator that moves elements returns.

        A channel that comes to lie on several places of several dimensions is taken away as a whole: along
        the dimension that follows the width.
        """
        sources = tensor_inputs(node, self.extents)
        found: list[dict[int, Tensor]] = [{} for _ in self.extents.shapes(node)]
        for axis in sorted({axis for source in sources for axis in self.of(source)}):

            def coded(source: Node, axis: int = axis) -> Tensor:
                shape, atoms = self.extents.shape(source), self.of(source).get(axis)
                if atoms is None:
                    return torch.full((1,) * len(shape), -1).expand(shape)
                return along(atoms, axis, shape)

            codes = apply(node, coded, self.extents, padding=-1)
            for item, code in enumerate(codes):
                self._place(node, item, code, found[item])
        return list(found)

    def _place(self, node: Node, item: int, code: Tensor, found: dict[int, Tensor]) -> None:
        """Finds the dimension of a result along which channels lie, and merges what shares a place there."""
        if not code.numel() or bool((code < 0).all()):
            return
        axes = [axis for axis in self.extents.variable(node)[item] if _varies(code, axis)]
        if len(axes) != 1 or axes[0] in found:
            self.block(torch.unique(code[code >= 0]), f"{where(node)} spreads it over several dimensions")
            return
        rows = code.movedim(axes[0], 0).reshape(code.shape[axes[0]], -1)
        last = rows.max(1).values
        first = torch.where(rows < 0, last[:, None], rows).min(1).values
        for row in torch.nonzero(first != last).flatten().tolist():
            self.merge(atom for atom in torch.unique(rows[row]).tolist() if atom >= 0)
        holes = torch.nonzero(last < 0).flatten()
        last[holes] = self.fresh(holes.numel())
        found[axes[0]] = last


def _varies(code: Tensor, axis: int) -> bool:
    return bool((code != code.narrow(axis, 0, 1)).any())


def where(node: Node) -> str:
    """A node in a person's words."""
    path = module_path(node)
    return f"{operator_name(node)} in {path}" if path else f"{operator_name(node)} (node {node.name})"
