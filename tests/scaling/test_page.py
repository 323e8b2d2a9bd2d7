"""The Python blocks of docs/scaling.md run as they stand, in one session."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_python_blocks_run(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 3
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "base.json").is_file()
    printed = done.stdout.splitlines()
    assert len(printed) == 5
    assert printed[0].rpartition("std=")[0] in text
    for part in (printed[1:4], printed[4:]):
        assert "\n".join(["```", *part, "```"]) in text
    assert (tmp_path / "check.png").is_file()
