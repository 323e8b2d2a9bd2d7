"""Solves a reshape: which output dimension is made of which input dimensions.

A reshape keeps the row-major order of its elements, so both shapes are mixed-radix notations of one index.
Read from the left at their present values, dimensions are merged until they fill an output dimension and
split where they overfill it; every merge and split is an equation between the widths.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from sparsify.graph.dimensions import Dimensions, Dims, Unsolved
from sparsify.graph.poly import Poly, product


def reshape(
    dimensions: Dimensions, node: Node, source: Dims, targets: Sequence[Poly | None], present: Dims
) -> Dims:
    """Output dimensions of a reshape.

    Args:
        dimensions: The equations to add to.
        node: The reshape.
        source: Input dimensions.
        targets: Output sizes as the node states them; None for -1.
        present: Output dimensions as the trace recorded them.

    Raises:
        Unsolved: no unique assignment exists.
    """
    if len(targets) != len(present):
        raise Unsolved("the result has another rank than stated")
    result: list[Poly] = []
    for part, count in _blocks(dimensions, source, present):
        taken = slice(len(result), len(result) + count)
        if count and all(dimensions.is_fixed(size) for size in part):
            result += present[taken]
            continue
        reader = _Reader(dimensions, [size for whole in part for size in dimensions.widths.factors(whole)])
        for target, recorded in zip(targets[taken], present[taken], strict=True):
            size = reader.take(recorded, target)
            if target is not None:
                dimensions.unify(target, size, node)
            result.append(size)
        reader.finish()
    return tuple(result)


def _blocks(dimensions: Dimensions, source: Dims, present: Dims) -> list[tuple[list[Poly], int]]:
    """The shortest runs of input dimensions, and numbers of output dimensions, of the same product.

    Where nothing in a run may grow, how the one becomes the other does not matter.
    """
    value = dimensions.widths.value
    rest = list(reversed(source))
    blocks: list[tuple[list[Poly], int]] = []
    run: list[Poly] = []
    count, before, after = 0, 1, 1
    for size in present:
        count, after = count + 1, after * value(size)
        while rest and before < after:
            run.append(rest.pop())
            before *= value(run[-1])
        if before == after:
            blocks.append((run, count))
            run, count, before, after = [], 0, 1, 1
    blocks.append(([*run, *reversed(rest)], count))
    return blocks


class _Reader:
    """Input dimensions, read from the left."""

    def __init__(self, dimensions: Dimensions, sizes: list[Poly]) -> None:
        self._widths = dimensions.widths
        self._rest = [size for size in reversed(sizes) if size.constant != 1]

    def take(self, recorded: Poly, target: Poly | None) -> Poly:
        """Reads dimensions that multiply to a size of the result, as the trace recorded it."""
        need = self._widths.value(recorded)
        taken: list[Poly] = []
        while need > 1:
            if not self._rest:
                raise Unsolved("sizes do not multiply to the same number")
            size = self._rest.pop()
            present = self._widths.value(size)
            if need % present == 0:
                taken.append(size)
                need //= present
            elif present % need == 0:
                part = self._part(need, self._unknown(recorded) if target is None else target, taken)
                rest = self._widths.factor(size, part)
                if rest is None:
                    raise Unsolved(f"a size {self._widths.resolve(size)} can be split in several ways")
                self._widths.layouts.made(size, "product", (part, rest))
                taken.append(part)
                self._rest.append(rest)
                need = 1
            else:
                raise Unsolved("dimensions are split across each other")
        return self._widths.flattened(taken)

    def _unknown(self, recorded: Poly) -> Poly:
        """A size that is stated as -1: what is known at run time, times an unknown width."""
        if not recorded.is_monomial:
            raise Unsolved("a size that is known at run time only is split")
        runtime, width = recorded.monomial()
        return Poly({runtime: 1}) * self._widths.fresh(width)

    def _part(self, need: int, target: Poly, taken: list[Poly]) -> Poly:
        part = self._widths.resolve(target).divide(self._widths.resolve(product(taken)))
        if part is not None and self._widths.value(part) == need:
            return part
        return self._widths.fresh(need)

    def finish(self) -> None:
        """Checks that everything was read."""
        if any(self._widths.value(size) != 1 for size in self._rest):
            raise Unsolved("sizes do not multiply to the same number")
