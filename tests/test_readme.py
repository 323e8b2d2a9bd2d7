"""README's Python blocks run as they stand, one after the other in one folder."""

from __future__ import annotations

from pathlib import Path

from tests.pages import printed, python_blocks

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(README)
    assert len(blocks) == 3
    for block in blocks:
        assert printed(block).strip()
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"sparse.pt2", "sparse.onnx", "pruned.onnx"}
