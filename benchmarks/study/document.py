"""Tables in Markdown, and the places of a document that they go to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

NOT_RUN = "Not run yet."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column flush left, numbers flush right; `NOT_RUN` without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return NOT_RUN
    rule = "|---|" + "---:|" * (len(head) - 1)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *lines])


def refresh(document: Path, contents: Mapping[str, str]) -> None:
    """Replaces what stands between `<!-- table: NAME -->` and the next `<!-- end -->`, for every name.

    Raises:
        ValueError: The document has no such place; nothing is written then.
    """
    text = document.read_text()
    for name, content in contents.items():
        head, mark, rest = text.partition(f"<!-- table: {name} -->\n")
        _, end, tail = rest.partition("<!-- end -->")
        if not mark or not end:
            raise ValueError(f"{document} has no lines '<!-- table: {name} -->' and '<!-- end -->'")
        text = f"{head}{mark}\n{content}\n\n{end}{tail}"
    document.write_text(text)
