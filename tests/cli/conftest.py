"""The command line, called as a user calls it."""

from __future__ import annotations

import sys

import pytest

from sparsify import cli


@pytest.fixture
def run(capsys, monkeypatch):
    """Calls `sparsify` with words and checks its exit code; returns what it wrote."""

    def call(*words, code=0):
        monkeypatch.setattr(sys, "argv", ["sparsify", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        assert (stopped.value.code or 0) == code, captured.err
        return captured

    return call
