"""The command line keeps weights, says how far the start is, and explains parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from sparsify.cli import app


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(6, 16), nn.LayerNorm(16)
        self.up, self.down, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))


@pytest.fixture(scope="module")
def transformed(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("preserve")
    torch.manual_seed(0)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Block().eval(), (torch.randn(2, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "dense.pt2")
    line = ["transform", str(folder / "dense.pt2"), "-o", str(folder / "out.pt2"), "--format", "json"]
    options = ["--init", "preserve", "--scope", "inner", "--sparsity", "0.5", "--new-connections", "0"]
    result = CliRunner().invoke(app, [*line, *options])
    assert result.exit_code == 0, result.output
    return folder / "out.pt2", json.loads(result.stdout)


def test_the_report_is_in_the_json(transformed):
    _, data = transformed
    assert data["weights"] == "kept"
    assert data["preserve"]["outputs"]["max_abs"] < 1e-5
    assert {row["fqn"]: row["kept"] for row in data["preserve"]["layers"]} == {"up": 1.0, "down": 1.0}


def test_explain_prints_one_parameter(transformed):
    path, _ = transformed
    result = CliRunner().invoke(app, ["inspect", str(path), "--explain", "up.weight", "--format", "json"])
    data = json.loads(result.stdout)
    assert data["fqn"] == "up.weight"
    assert [row["how"] for row in data["parameters"]] == ["widened"]
    text = CliRunner().invoke(app, ["inspect", str(path), "--explain", "up.weight"])
    assert text.exit_code == 0
    assert "widens up.weight" in text.stdout
