"""Symbolic sizes in an archive: integer arithmetic over symbols, and nothing else.

torch writes them in sympy's constructor form, `Mul(Integer(2), Symbol('s0', integer=True))`, older
versions as `2*s0`; both are read here.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from sparsify.archive.consent import PickleConsentError

_SYMBOL = re.compile(r"[a-z]{1,3}\d+|int_oo|oo")
_FUNCTIONS = {
    "Add",
    "And",
    "CeilDiv",
    "CleanDiv",
    "Equality",
    "FloorDiv",
    "GreaterThan",
    "LessThan",
    "Max",
    "Min",
    "Mod",
    "ModularIndexing",
    "Mul",
    "Not",
    "Or",
    "Pow",
    "PowByNatural",
    "PythonMod",
    "StrictGreaterThan",
    "StrictLessThan",
    "Unequality",
}
_POWERS = ("Pow", "PowByNatural")
_ASSUMPTIONS = {"integer", "negative", "nonnegative", "nonzero", "positive"}
_BINARY = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Div)
_COMPARED = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_LONGEST, _LARGEST_POWER = 4096, 16


def check_expression(name: str, text: Any) -> None:
    """Checks one expression, which sympy would otherwise evaluate as Python.

    Args:
        name: Record that it stands in, for the message.
        text: The expression.

    Raises:
        PickleConsentError: When it is more than sums, products, quotients and small powers of symbols.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise PickleConsentError(f"{name} has a symbolic size that is no short expression")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise PickleConsentError(f"{name} has a symbolic size {text[:80]!r} that is no expression") from error
    if not _allowed(tree.body):
        raise PickleConsentError(f"{name} has a symbolic size {text[:80]!r} that is no integer arithmetic")


def _allowed(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        return isinstance(node.value, (bool, int))
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, (ast.USub, ast.UAdd)) and _allowed(node.operand)
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow):
            return _allowed(node.left) and _is_small(node.right)
        return isinstance(node.op, _BINARY) and _allowed(node.left) and _allowed(node.right)
    if isinstance(node, ast.Compare):
        return all(isinstance(op, _COMPARED) for op in node.ops) and all(
            map(_allowed, [node.left, *node.comparators])
        )
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _allowed_call(node.func.id, node)
    )


def _allowed_call(name: str, node: ast.Call) -> bool:
    if name == "Symbol":
        flags = all(k.arg in _ASSUMPTIONS and isinstance(k.value, ast.Constant) for k in node.keywords)
        return flags and len(node.args) == 1 and _is_symbol_name(node.args[0])
    if node.keywords:
        return False
    if name in ("Integer", "Rational"):
        return all(map(_is_integer, node.args))
    if name in _POWERS and not (len(node.args) == 2 and _is_small(node.args[1])):
        return False
    return name in _FUNCTIONS and all(map(_allowed, node.args))


def _is_symbol_name(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(_SYMBOL.fullmatch(node.value))
    )


def _is_integer(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node = node.operand
    return isinstance(node, ast.Constant) and type(node.value) is int


def _is_small(node: ast.expr) -> bool:
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Integer"
        and node.args
    ):
        node = node.args[0]
    return isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value <= _LARGEST_POWER
