"""Width symbols and the equations between them.

Two kinds of symbols meet in a dimension: width symbols, which have a present value and may later take another
one, and run-time symbols (``@s0``: batch, sequence length), which are opaque. Equations are solved when they
are stated, by substitution; one without a unique solution pins every width in it to its present value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from math import gcd

from sparsify.graph.layout import Layouts
from sparsify.graph.poly import Monomial, Poly, product

RUNTIME = "@"


def is_runtime(symbol: str) -> bool:
    """Whether a symbol stands for a size that is known at run time only."""
    return symbol.startswith(RUNTIME)


@dataclass(frozen=True)
class Pin:
    """Why a width is fixed; ``root`` is the symbol at which it was said."""

    root: str
    reason: str


class Widths:
    """Symbols, their present values, and what is known of them.

    Attributes:
        values: Present value of every width symbol, a probe value for every run-time symbol.
        pins: Width symbols that must keep their value.
        ratios: Symbols that count repetitions; where they multiply another width, they stay.
        layouts: In which order dimensions are made of others.
    """

    def __init__(self) -> None:
        self.values: dict[str, int] = {}
        self.pins: dict[str, Pin] = {}
        self.ratios: set[str] = set()
        self.layouts = Layouts()
        self._substitution: dict[str, Poly] = {}
        self._age: dict[str, int] = {}
        self._factors: dict[str, tuple[Poly, ...]] = {}

    def fresh(self, value: int, *, ratio: bool = False) -> Poly:
        """A new width symbol of this present value; sizes 0 and 1 are plain numbers."""
        if value <= 1:
            return Poly(value)
        name = f"w{len(self._age)}"
        self._age[name] = len(self._age)
        self.values[name] = value
        if ratio:
            self.ratios.add(name)
        return Poly.symbol(name)

    def resolve(self, poly: Poly) -> Poly:
        """The polynomial over unsolved symbols; pinned ones become numbers."""
        known = {name: self._lookup(name) for name in poly.symbols if name in self._substitution}
        return poly.substitute(known) if known else poly

    def _lookup(self, name: str) -> Poly:
        poly = self._substitution[name]
        resolved = self.resolve(poly)
        if resolved is not poly:
            self._substitution[name] = resolved
            if not self._free(resolved) and name not in self.pins:
                self.pins[name] = next(self.pins[part] for part in sorted(poly.symbols) if part in self.pins)
        return resolved

    def pin_of(self, poly: Poly) -> Pin | None:
        """The reason for which the first pinned symbol of a polynomial is pinned."""
        self.resolve(poly)
        return next((self.pins[name] for name in sorted(poly.symbols) if name in self.pins), None)

    def flattened(self, factors: Iterable[Poly]) -> Poly:
        """The size of a dimension made of others; it remembers their order, so that it can be split again."""
        kept = [factor for factor in factors if factor.constant != 1]
        whole = self.resolve(product(kept))
        if len(kept) < 2 or whole.constant is not None or any(map(is_runtime, whole.symbols)):
            return kept[0] if len(kept) == 1 else whole
        size = self.fresh(self.value(whole))
        ((name,),) = size.terms
        self._substitution[name], self._factors[name] = whole, tuple(kept)
        self.layouts.made(size, "product", kept)
        return size

    def joined(self, parts: Iterable[Poly]) -> Poly:
        """The size of dimensions one after the other; their order is remembered."""
        kept = list(parts)
        whole = self.resolve(sum(kept, Poly(0)))
        if len(kept) < 2 or whole.constant is not None or any(map(is_runtime, whole.symbols)):
            return kept[0] if len(kept) == 1 else whole
        size = self.fresh(self.value(whole))
        ((name,),) = size.terms
        self._substitution[name] = whole
        self.layouts.made(size, "sum", kept)
        return size

    def factors(self, size: Poly) -> list[Poly]:
        """The factors of a dimension in order, as far as they are remembered."""
        name = self._lone_symbol(size)
        if name in self._factors:
            return [inner for factor in self._factors[name] for inner in self.factors(factor)]
        known = self._substitution.get(name) if name is not None else None
        return [size] if known is None or self._lone_symbol(known) is None else self.factors(known)

    def value(self, poly: Poly) -> int:
        """Present value; run-time symbols count with their probe value."""
        return poly.evaluate(self.values)

    @staticmethod
    def _free(poly: Poly) -> list[str]:
        return sorted(name for name in poly.symbols if not is_runtime(name))

    def free(self, poly: Poly) -> list[str]:
        """Width symbols that are still free in a polynomial, oldest first."""
        return sorted(self._free(self.resolve(poly)), key=self._age.__getitem__)

    def oldest(self, names: Iterable[str]) -> str:
        """The symbol that was introduced first."""
        return min(names, key=self._age.__getitem__)

    def pin(self, poly: Poly, reason: str) -> None:
        """Fixes every width in a polynomial at its present value."""
        for name in self._free(self.resolve(poly)):
            self.pins[name] = Pin(name, reason)
            self._substitution[name] = Poly(self.values[name])

    def unify(self, left: Poly, right: Poly, where: str) -> bool:
        """States that two sizes are equal.

        Returns:
            False where they differ at present, which means that the caller misread the operator.
        """
        self.layouts.same(left, right)
        left, right = self.resolve(left), self.resolve(right)
        difference = left - right
        if not difference:
            return True
        if self.value(left) != self.value(right):
            fixed = not self._free(left) and not self._free(right)
            # The model ran with them: two run-time sizes that are equal there, such as two inputs' batches.
            return fixed and any(map(is_runtime, left.symbols | right.symbols))
        by_runtime: dict[Monomial, dict[Monomial, int]] = {}
        for monomial, coefficient in difference.terms.items():
            outer = tuple(name for name in monomial if is_runtime(name))
            inner = tuple(name for name in monomial if not is_runtime(name))
            by_runtime.setdefault(outer, {})[inner] = coefficient
        solved = [self._vanish(Poly(terms), where) for terms in by_runtime.values()]
        return all(solved)

    def _vanish(self, difference: Poly, where: str) -> bool:
        """Solves ``difference == 0`` over width symbols only."""
        difference = self.resolve(difference)
        if not difference:
            return True
        if self.value(difference) != 0:
            self.pin(difference, f"{where} relates it to run-time sizes in a way that is not understood")
            return difference.constant is None
        common = product(Poly.symbol(name) for name in self._common(difference)) * difference.content
        reduced = difference.divide(common)
        difference = difference if reduced is None else reduced
        left = Poly({key: value for key, value in difference.terms.items() if value > 0})
        right = Poly({key: -value for key, value in difference.terms.items() if value < 0})
        for side, other in ((left, right), (right, left)):
            if side.constant is not None:
                self.pin(other, f"equals a fixed size, {side.constant}, in {where}")
                return True
        if not (self._substitute_symbol(left, right) or self._solve(left, right, where)):
            sizes = sorted({self.values[name] for name in difference.symbols})
            self.pin(difference, f"{where} relates the widths {sizes} but does not say how each may grow")
        return True

    @staticmethod
    def _common(difference: Poly) -> Monomial:
        monomials = list(difference.terms)
        return tuple(
            name
            for name in sorted(set(monomials[0]))
            for _ in range(min(monomial.count(name) for monomial in monomials))
        )

    def _substitute_symbol(self, left: Poly, right: Poly) -> bool:
        """Solves ``symbol = anything``; of two symbols the older stays, and a ratio never does."""
        choices = []
        for side, other in ((left, right), (right, left)):
            name = self._lone_symbol(side)
            if name is not None and name not in other.symbols:
                choices.append((name in self.ratios, self._age[name], name, other))
        if not choices:
            return False
        _, _, name, other = max(choices, key=lambda choice: choice[:2])
        self._substitution[name] = other
        return True

    @staticmethod
    def _lone_symbol(poly: Poly) -> str | None:
        if poly.is_monomial:
            symbols, coefficient = poly.monomial()
            if len(symbols) == 1 and coefficient == 1:
                return symbols[0]
        return None

    def _solve(self, left: Poly, right: Poly, where: str) -> bool:
        if left.is_monomial and right.is_monomial:
            return self._solve_products(left, right, where)
        for side, other in ((left, right), (right, left)):
            if side.is_monomial:
                return self._solve_sections(side, other, where)
        return self._pair(
            [Poly(dict([term])) for term in left.terms.items()],
            [Poly(dict([term])) for term in right.terms.items()],
            where,
        )

    def _solve_products(self, left: Poly, right: Poly, where: str) -> bool:
        (a, p), (b, q) = left.monomial(), right.monomial()
        if len(a) > 1 and len(b) > 1:
            return p == q and self._pair_symbols(a, b, where)
        if len(a) > 1:
            (a, p), (b, q) = (b, q), (a, p)
        same = [name for name in b if self.values[name] == self.values[a[0]]]
        if len(b) > 1 and len(same) == 1 and p % q == 0:
            rest = product(Poly.symbol(name) for name in b if name != same[0])
            pairs = [(Poly.symbol(same[0]), Poly.symbol(a[0])), (rest, Poly(p // q))]
            return self._unify_all(pairs, where)
        divisible = [name for name in dict.fromkeys(b) if self.values[name] % p == 0]
        if len(divisible) != 1 or b.count(divisible[0]) > 1:
            return False
        unit = self.fresh(self.values[divisible[0]] // p)
        self._substitution[divisible[0]] = unit * p
        others = [Poly.symbol(name) for name in b if name != divisible[0]]
        self._substitution[a[0]] = product(others) * unit * q
        return True

    def _solve_sections(self, whole: Poly, sections: Poly, where: str) -> bool:
        """Solves ``c·X = a + b + …`` where every section is a multiple of X at present."""
        symbols, _ = whole.monomial()
        unit = Poly({symbols: 1})
        size = self.value(unit)
        parts = [Poly(dict([term])) for term in sections.terms.items()]
        if any(self.value(part) % size for part in parts):
            return False
        return self._unify_all(((part, unit * (self.value(part) // size)) for part in parts), where)

    def _pair(self, left: list[Poly], right: list[Poly], where: str) -> bool:
        left, right = sorted(left, key=self.value), sorted(right, key=self.value)
        if [self.value(part) for part in left] != [self.value(part) for part in right]:
            return False
        return self._unify_all(zip(left, right, strict=True), where)

    def _unify_all(self, pairs: Iterable[tuple[Poly, Poly]], where: str) -> bool:
        """States every equation, also after one that failed."""
        stated = [self.unify(a, b, where) for a, b in pairs]
        return all(stated)

    def _pair_symbols(self, left: Monomial, right: Monomial, where: str) -> bool:
        """Takes factors of two products for the same where only one pairing fits.

        Counts of repetitions correspond to each other, other factors by their value.
        """

        def kind(name: str) -> tuple[bool, int]:
            return name in self.ratios, self.values[name]

        left, right = tuple(sorted(left, key=kind)), tuple(sorted(right, key=kind))
        kinds = [kind(name) for name in left]
        if kinds != [kind(name) for name in right] or len(set(kinds)) < len(kinds):
            return False
        pairs = ((Poly.symbol(a), Poly.symbol(b)) for a, b in zip(left, right, strict=True))
        return self._unify_all(pairs, where)

    def factor(self, poly: Poly, part: Poly) -> Poly | None:
        """Splits a size in two: solves ``poly = part · rest`` for ``rest``.

        ``part`` is usually a fresh symbol, whose present value says how much to take. It becomes a factor
        that is there already, or the one symbol that it divides becomes a product.

        Returns:
            ``rest``, or None where the split is ambiguous or impossible.
        """
        poly, part = self.resolve(poly), self.resolve(part)
        exact = poly.divide(part)
        if exact is not None:
            return exact
        runtime = product(Poly.symbol(name) for term in part.terms for name in term if is_runtime(name))
        if runtime.constant is None:
            inner = poly.divide(runtime) if part.is_monomial else None
            rest = part.divide(runtime)
            return None if inner is None or rest is None else self.factor(inner, rest)
        if len(poly.terms) > 1:
            return self._factor_sum(poly, part)
        symbols, coefficient = poly.monomial()
        symbols = tuple(name for name in symbols if not is_runtime(name))
        present = self.value(part)
        if part.constant is None:
            candidates = list(self._subproducts(symbols, coefficient, present))
            if len(candidates) > 1:
                return None
            if candidates and self.unify(part, candidates[0], "a view"):
                return poly.divide(candidates[0])
        return self._split_symbol(poly, symbols, coefficient, part)

    def _subproducts(self, symbols: Monomial, coefficient: int, present: int) -> Iterable[Poly]:
        seen = set()
        for count in range(len(symbols) + 1):
            for chosen in combinations(symbols, count):
                size = product(Poly.symbol(name) for name in chosen)
                quotient, remainder = divmod(present, self.value(size))
                if not remainder and quotient and coefficient % quotient == 0 and chosen not in seen:
                    seen.add(chosen)
                    yield size * quotient

    def _split_symbol(self, poly: Poly, symbols: Monomial, coefficient: int, part: Poly) -> Poly | None:
        present = self.value(part)
        if part.constant is not None:
            shared = gcd(present, coefficient)
            present, part = present // shared, Poly(present // shared)
            poly = Poly({key: value // shared for key, value in poly.terms.items()})
        divisible = [name for name in dict.fromkeys(symbols) if self.values[name] % present == 0]
        if len(divisible) != 1 or symbols.count(divisible[0]) > 1 or divisible[0] in part.symbols:
            return None
        name = divisible[0]
        rest = self.fresh(self.values[name] // present)
        self._substitution[name] = part * rest
        self._factors.setdefault(name, (part, rest))
        return self.resolve(poly).divide(self.resolve(part))

    def _factor_sum(self, poly: Poly, part: Poly) -> Poly | None:
        terms = [Poly(dict([term])) for term in poly.terms.items()]
        sizes = {self.value(term) for term in terms}
        if part.constant is None and len(sizes) == 1 and self.value(part) == len(terms):
            for term in terms[1:]:
                self.unify(terms[0], term, "a view")
            if self.unify(part, Poly(len(terms)), "a view"):
                return self.resolve(poly).divide(Poly(len(terms)))
            return None
        total = Poly(0)
        for term in terms:
            rest = self.factor(term, part)
            if rest is None or self.value(rest) * self.value(part) != self.value(term):
                return None
            total = total + rest
        return total
