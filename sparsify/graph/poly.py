"""Polynomials with integer coefficients over width symbols: dimensions, baked-in sizes and FLOP counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from math import gcd
from typing import Any, overload

Monomial = tuple[str, ...]


class Poly:
    """An immutable polynomial, such as ``64*heads`` or ``3*n + 16``.

    Terms are kept as monomial → coefficient, a monomial being its sorted symbols, repeated for powers.
    Two polynomials are equal when they are the same polynomial; a constant also equals its int.
    """

    __slots__ = ("_hash", "terms")

    terms: dict[Monomial, int]

    def __init__(self, terms: Mapping[Monomial, int] | int = 0) -> None:
        if isinstance(terms, int):
            terms = {(): terms}
        self.terms = {monomial: coefficient for monomial, coefficient in terms.items() if coefficient}
        self._hash: int | None = None

    @classmethod
    def symbol(cls, name: str) -> Poly:
        """The polynomial that is one symbol."""
        return cls({(name,): 1})

    @classmethod
    def of(cls, value: Poly | int) -> Poly:
        """``value`` as a polynomial."""
        return value if isinstance(value, Poly) else cls(int(value))

    @property
    def symbols(self) -> frozenset[str]:
        """Names of all symbols that occur."""
        return frozenset(name for monomial in self.terms for name in monomial)

    @property
    def constant(self) -> int | None:
        """The value where no symbol occurs, else None."""
        if not self.terms:
            return 0
        return self.terms.get(()) if len(self.terms) == 1 else None

    @property
    def is_monomial(self) -> bool:
        """Whether there is exactly one term."""
        return len(self.terms) == 1

    @property
    def content(self) -> int:
        """Greatest common divisor of the coefficients."""
        return gcd(*self.terms.values())

    def monomial(self) -> tuple[Monomial, int]:
        """Symbols and coefficient of a polynomial with one term.

        Raises:
            ValueError: there are several terms, or none.
        """
        ((symbols, coefficient),) = self.terms.items()
        return symbols, coefficient

    @overload
    def evaluate(self, values: Mapping[str, int]) -> int: ...
    @overload
    def evaluate(self, values: Mapping[str, float]) -> float: ...
    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The number this polynomial is, given a number for every symbol.

        Raises:
            KeyError: a symbol has no value.
        """
        total: int | float = 0
        for monomial, coefficient in self.terms.items():
            product: int | float = coefficient
            for name in monomial:
                product *= values[name]
            total += product
        return total

    def substitute(self, values: Mapping[str, Poly]) -> Poly:
        """This polynomial with the given symbols replaced."""
        if not any(name in values for monomial in self.terms for name in monomial):
            return self
        total: Counter[Monomial] = Counter()
        for monomial, coefficient in self.terms.items():
            kept = Poly({tuple(name for name in monomial if name not in values): coefficient})
            for name in monomial:
                if name in values:
                    kept = kept * values[name]
            for key, value in kept.terms.items():
                total[key] += value
        return Poly(total)

    def divide(self, divisor: Poly) -> Poly | None:
        """The exact quotient by a polynomial of one term, or None where it is none."""
        if not divisor.is_monomial:
            return Poly(1) if self == divisor and self.terms else None
        symbols, coefficient = divisor.monomial()
        quotient: dict[Monomial, int] = {}
        for monomial, value in self.terms.items():
            rest = Counter(monomial)
            rest.subtract(symbols)
            if value % coefficient or any(count < 0 for count in rest.values()):
                return None
            quotient[tuple(sorted(rest.elements()))] = value // coefficient
        return Poly(quotient)

    def degree(self, name: str) -> int:
        """Highest power of one symbol."""
        return max((monomial.count(name) for monomial in self.terms), default=0)

    def __add__(self, other: Poly | int) -> Poly:
        total = Counter(self.terms)
        for monomial, coefficient in Poly.of(other).terms.items():
            total[monomial] += coefficient
        return Poly(total)

    __radd__ = __add__

    def __neg__(self) -> Poly:
        return Poly({monomial: -coefficient for monomial, coefficient in self.terms.items()})

    def __sub__(self, other: Poly | int) -> Poly:
        return self + -Poly.of(other)

    def __rsub__(self, other: Poly | int) -> Poly:
        return Poly.of(other) + -self

    def __mul__(self, other: Poly | int) -> Poly:
        other = Poly.of(other)
        total: Counter[Monomial] = Counter()
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                total[tuple(sorted(left + right)) if left and right else left or right] += a * b
        return Poly(total)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            return self.constant == other
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        if self._hash is None:
            constant = self.constant
            self._hash = hash(frozenset(self.terms.items())) if constant is None else hash(constant)
        return self._hash

    def __bool__(self) -> bool:
        return bool(self.terms)

    def __str__(self) -> str:
        parts = []
        for monomial, coefficient in sorted(self.terms.items(), key=lambda term: (-len(term[0]), term[0])):
            factors = [str(coefficient)] if coefficient != 1 or not monomial else []
            parts.append("*".join([*factors, *monomial]))
        return " + ".join(parts) or "0"

    def __repr__(self) -> str:
        return f"Poly({self})"


def product(factors: Iterable[Poly]) -> Poly:
    """Product of polynomials; 1 for none."""
    result = Poly(1)
    for factor in factors:
        result = result * factor
    return result
