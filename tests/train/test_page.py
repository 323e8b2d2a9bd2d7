"""The blocks of docs/finetune.md run as they stand: Python in one session, then the commands."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

import sparsify
from sparsify import cli
from sparsify.masks import verify_masks
from sparsify.train.data import from_arrays

PAGE = (Path(__file__).parents[2] / "docs" / "finetune.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    session: dict = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, "finetune.md", "exec"), session)
    dense, pruned = printed.getvalue().splitlines()[:2]
    accuracy, density = map(float, pruned.split())
    assert float(dense) > 0.95 and accuracy > float(dense) - 0.04
    assert density == pytest.approx(0.1, abs=1e-3)
    data = from_arrays("mails", session["mails"]())
    assert data.train.keywords.keys() == {"input_ids", "attention_mask"}
    merged = sparsify.load("merged.pt2")
    verify_masks(merged)
    commands = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL).group(1).strip().splitlines()
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, command
    assert Path("gmp.onnx").exists()
