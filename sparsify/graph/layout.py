"""In which order a dimension is made of widths: where each unit is now, and where it is once they grow.

A size such as ``192*heads`` does not say whether the heads come first (each with 192 channels) or whether
three sections of ``64*heads`` do. The operators that merge, split, join and cut dimensions do, and note it
here. Dimensions that an operator takes for equal have the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sparsify.graph.poly import Poly, product

Kind = Literal["size", "product", "sum", "any", "unknown"]


@dataclass(frozen=True)
class Layout:
    """What a dimension is made of, in order.

    Attributes:
        kind: `size`: one run of `size` units. `product`: `parts` nested, the outermost first. `sum`: `parts`
            one after the other. `any`: several descriptions that hold at once. `unknown`: the order is not
            known.
        size: Number of entries over width symbols.
        parts: The parts.
    """

    kind: Kind
    size: Poly
    parts: tuple[Layout, ...] = ()

    def positions(self, old: Mapping[str, int], new: Mapping[str, int]) -> Tensor | None:
        """Where each present entry is at other widths, none of which is smaller.

        Args:
            old: Present widths by symbol.
            new: Widths to come.

        Returns:
            int64 tensor [present size] of places; None where the order is not known or a part shrinks.
        """
        before, after = self.size.evaluate(old), self.size.evaluate(new)
        if before == after:
            return torch.arange(before)
        if after < before or self.kind == "unknown":
            return None
        if self.kind == "size":
            return torch.arange(before)
        found = [part.positions(old, new) for part in self.parts]
        if self.kind == "any":
            known = [places for places in found if places is not None]
            same = all(torch.equal(places, known[0]) for places in known[1:])
            return known[0] if known and same else None
        sizes = [part.size.evaluate(new) for part in self.parts]
        places = torch.zeros(1 if self.kind == "product" else 0, dtype=torch.int64)
        offset = 0
        for part, size in zip(found, sizes, strict=True):
            if part is None:
                return None
            if self.kind == "product":
                places = (places[:, None] * size + part[None, :]).reshape(-1)
            else:
                places = torch.cat([places, part + offset])
                offset += size
        return places

    def named(self, name: Callable[[Poly], Poly]) -> Layout:
        """The same over other symbols."""
        return Layout(self.kind, name(self.size), tuple(part.named(name) for part in self.parts))

    def to_json(self) -> list[Any]:
        """Plain values that `from_json` reads back."""
        terms = [[list(symbols), coefficient] for symbols, coefficient in self.size.terms.items()]
        return [self.kind, terms, [part.to_json() for part in self.parts]]

    @classmethod
    def from_json(cls, data: Any) -> Layout:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        kind, terms, parts = data
        if kind not in ("size", "product", "sum", "any", "unknown"):
            raise ValueError(f"a layout of kind {kind!r}")
        size = Poly({tuple(symbols): int(coefficient) for symbols, coefficient in terms})
        return cls(kind, size, tuple(cls.from_json(part) for part in parts))


class Layouts:
    """What operators said about the order of dimensions, by width symbol."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}
        self._made: dict[str, list[tuple[Kind, tuple[Poly, ...]]]] = {}

    def same(self, left: Poly, right: Poly) -> None:
        """Notes that two dimensions have the same order, before anything in them is solved."""
        a, b = _symbol(left), _symbol(right)
        if a is not None and b is not None:
            a, b = self._root(a), self._root(b)
            if a != b:
                self._parents[b] = a
                self._made.setdefault(a, []).extend(self._made.pop(b, []))
        elif (a is None) != (b is None):
            lone, other = (left, right) if a is not None else (right, left)
            if len(other.terms) > 1 and all(coefficient == 1 for coefficient in other.terms.values()):
                self.made(lone, "sum", [Poly({term: 1}) for term in other.terms])

    def made(self, size: Poly, kind: Literal["product", "sum"], parts: Iterable[Poly]) -> None:
        """Notes what a dimension is made of, if it is a symbol of its own."""
        name = _symbol(size)
        kept = tuple(parts)
        if name is not None and not any(_symbol(part) == name for part in kept):
            known = self._made.setdefault(self._root(name), [])
            if (kind, kept) not in known:
                known.append((kind, kept))

    def of(self, size: Poly, resolve: Callable[[Poly], Poly]) -> Layout:
        """The order of a dimension.

        Args:
            size: The dimension as its operator or parameter has it.
            resolve: Gives a size over unsolved symbols.
        """
        return self._of(size, resolve, frozenset())

    def _of(self, size: Poly, resolve: Callable[[Poly], Poly], inside: frozenset[str]) -> Layout:
        whole = resolve(size)
        if whole.constant is not None:
            return Layout("size", whole)
        name = _symbol(size)
        root = None if name is None else self._root(name)
        found = []
        if root is not None and root not in inside:
            for kind, parts in self._made.get(root, []):
                layouts = tuple(self._of(part, resolve, inside | {root}) for part in parts)
                if _total(kind, layouts) == whole:
                    found.append(Layout(kind, whole, layouts))
        if not found:
            return Layout("size" if _symbol(whole) is not None else "unknown", whole)
        found = list(dict.fromkeys(found))
        return found[0] if len(found) == 1 else Layout("any", whole, tuple(found))

    def _root(self, name: str) -> str:
        root = name
        while root in self._parents:
            root = self._parents[root]
        while name != root:
            self._parents[name], name = root, self._parents[name]
        return root


def _total(kind: Kind, parts: tuple[Layout, ...]) -> Poly:
    sizes = [part.size for part in parts]
    return product(sizes) if kind == "product" else sum(sizes, Poly(0))


def _symbol(size: Poly) -> str | None:
    if size.is_monomial:
        symbols, coefficient = size.monomial()
        if len(symbols) == 1 and coefficient == 1:
            return symbols[0]
    return None
