"""The demonstration, shortened: every file it names is there and the report stands alone."""

from __future__ import annotations

import json
from pathlib import Path

from sparsify.demo import model, report, run, run_demo


class Narrow(model.DigitsCNN):
    """The demonstration's model with a quarter of its channels."""

    def __init__(self, widths=(8, 16, 32, 32)):
        super().__init__(widths)


def test_the_demonstration_runs_and_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "DigitsCNN", Narrow)
    lines: list[str] = []
    data = run_demo(tmp_path / "demo", steps=4, bench_seconds=0.1, say=lines.append)
    assert abs(data["flops_ratio"] - 1) < 1e-3
    assert data["columns"]["wide"]["flops"] > 2 * data["columns"]["dense"]["flops"]
    assert data["columns"]["sparse"]["parameters_nonzero"] < data["columns"]["wide"]["parameters_nonzero"]
    assert data["max_abs_error"] < 1e-3
    assert all(Path(file).exists() for file in data["files"].values())
    assert json.loads(Path(data["files"]["summary"]).read_text())["latency_ms"]["sparse"] > 0
    page = Path(data["files"]["report"]).read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page
    assert (
        all(command.split()[0] == "sparsify" for command in data["commands"]) and len(data["commands"]) == 13
    )
    assert data["columns"]["blocks"]["flops"] == data["columns"]["dense"]["flops"]
    assert sum("--pattern 4x1" in command for command in data["commands"]) == 1
    data["columns"]["sparse"]["latency_ms"] = {"1": {"p50": 3.0}, "64": {"p50": 40.0}}
    data["columns"]["blocks"]["latency_ms"] = {"1": {"p50": 2.0}, "64": {"p50": 16.0}}
    assert "1.50 and 2.50 times as fast" in report.advice(data)
