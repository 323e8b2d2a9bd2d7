"""Errors of the package: every message says what, where, why, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass


class SparsifyError(Exception):
    """Base of all errors raised on purpose by this package."""


class UserError(SparsifyError):
    """An argument, file or environment that the user can put right."""


class UnsupportedModelError(SparsifyError):
    """A model that cannot be captured or rewritten, with the operator or module that is in the way."""


class InvalidPlanError(SparsifyError):
    """A plan that does not fit the model, the version, or itself."""


class BudgetError(SparsifyError):
    """A FLOP budget that no density can meet.

    Attributes:
        largest_width: Largest feasible width factor, where one exists.
    """

    def __init__(self, message: str, *, largest_width: float | None = None) -> None:
        super().__init__(message)
        self.largest_width = largest_width


class ParityError(SparsifyError):
    """Two forms of one model whose outputs differ by more than rounding explains."""


class RuntimeLibraryError(SparsifyError):
    """The native library is missing, cannot be loaded, or refused its input."""


@dataclass(frozen=True)
class Refusal:
    """A layer or tensor that was left alone.

    Attributes:
        fqn: Path of the module or parameter in the user's model.
        rule: Name of the rule that refused, stable across versions.
        reason: Why, in a sentence.
    """

    fqn: str
    rule: str
    reason: str
