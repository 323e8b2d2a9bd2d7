"""Polynomials behave like the functions that they stand for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsify.graph.poly import Poly, product

NAMES = ("a", "b", "c")
MONOMIALS = st.lists(st.sampled_from(NAMES), max_size=3).map(lambda names: tuple(sorted(names)))
POLYS = st.dictionaries(MONOMIALS, st.integers(-5, 5), max_size=4).map(Poly)
POINTS = st.fixed_dictionaries({name: st.integers(-4, 4) for name in NAMES})

a, b = Poly.symbol("a"), Poly.symbol("b")


@given(POLYS, POLYS, POINTS)
def test_arithmetic_is_that_of_functions(p: Poly, q: Poly, at: dict[str, int]) -> None:
    assert (p + q).evaluate(at) == p.evaluate(at) + q.evaluate(at)
    assert (p - q).evaluate(at) == p.evaluate(at) - q.evaluate(at)
    assert (p * q).evaluate(at) == p.evaluate(at) * q.evaluate(at)


@given(POLYS, POLYS, POINTS)
def test_substitution_is_composition(p: Poly, q: Poly, at: dict[str, int]) -> None:
    assert p.substitute({"a": q}).evaluate(at) == p.evaluate(at | {"a": q.evaluate(at)})


@given(POLYS, MONOMIALS, st.integers(1, 5))
def test_division_inverts_multiplication(p: Poly, symbols: tuple[str, ...], coefficient: int) -> None:
    divisor = Poly({symbols: coefficient})
    assert (p * divisor).divide(divisor) == p


@given(POLYS, POLYS)
def test_equal_polynomials_hash_alike(p: Poly, q: Poly) -> None:
    assert p + q == q + p
    assert hash(p + q) == hash(q + p)


def test_division_with_a_remainder_is_refused() -> None:
    assert (3 * a + 2).divide(Poly(2)) is None
    assert (a + b).divide(a) is None
    assert (a + b).divide(a + b) == 1


def test_constants() -> None:
    assert Poly(3) == 3
    assert hash(Poly(3)) == hash(3)
    assert Poly(3).constant == 3
    assert Poly(0).constant == 0
    assert a.constant is None
    assert (a - a).constant == 0
    assert (a - a).symbols == frozenset()


def test_evaluates_at_fractions() -> None:
    assert (2 * a * a + b).evaluate({"a": 1.5, "b": 1}) == pytest.approx(5.5)


def test_a_symbol_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        (a + b).evaluate({"a": 1})


def test_reads_like_algebra() -> None:
    assert str(64 * a + b * b + 3) == "b*b + 64*a + 3"
    assert str(Poly(0)) == "0"
    assert (3 * a * a * b).degree("a") == 2
    assert (4 * a + 6).content == 2
    assert product([a, a, Poly(3)]) == 3 * a * a
