"""Runs the Python blocks of a page in this process, each as a reader would paste it."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any


def python_blocks(page: Path) -> list[str]:
    """The page's Python blocks, in order."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def printed(block: str, session: dict[str, Any] | None = None) -> str:
    """What a block prints; blocks of one session see each other's names."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "block", "exec"), {} if session is None else session)
    return out.getvalue()
