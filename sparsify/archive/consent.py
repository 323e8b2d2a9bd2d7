"""The question that must be answered before a file may run code."""

from __future__ import annotations

from sparsify.errors import UserError


class PickleConsentError(UserError):
    """Loading the file would, or could, run code that the file brings along.

    Attributes:
        what: What the file would do, without the advice.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}. Only for a file from someone you trust: pass trust_pickle=True, or --trust-pickle"
        )
        self.what = what
