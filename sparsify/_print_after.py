"""Prints the graph as it is after a pass: what `sparsify transform --print-after` does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsify.errors import UserError


def printer(wanted: str, write: Callable[[str], None]) -> Callable[[str, Any], None]:
    """An observer of the pipeline that writes the readable graph after a pass.

    Args:
        wanted: Name of the pass, with hyphens for spaces, or `all`.
        write: Takes the text.

    Raises:
        UserError: No pass has that name; the message lists those there are.
    """
    from sparsify.passes import PIPELINE

    names = [_dashed(step.name) for step in PIPELINE]
    if wanted != "all" and _dashed(wanted) not in names:
        raise UserError(
            f"--print-after: no pass is called {wanted!r}; choose one of {', '.join(names)}, or all"
        )

    def observe(name: str, result: Any) -> None:
        if wanted == "all" or _dashed(wanted) == _dashed(name):
            text = result.graph.print_readable(print_output=False)
            write(f"# after pass {_dashed(name)}: {result.modified} changes\n{text}")

    return observe


def _dashed(name: str) -> str:
    return name.replace(" ", "-")
