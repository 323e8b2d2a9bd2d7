"""Studies train what is missing and nothing else, in order, on processes or here, and say what is left."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.study.command import command, forecast
from benchmarks.study.engine import Training, outstanding
from benchmarks.study.ledger import Ledger
from tests.benchmarks.study.counting import Counting, Inner, Sum

STAMP = {"revision": "abc"}


def test_a_part_that_rests_on_another_is_trained_after_it_and_counted_before(tmp_path):
    study, ledger = Counting(), Ledger(Sum, tmp_path / "runs.jsonl")
    assert len(outstanding(study, ledger, study.parts)) == 6
    Training(study, ledger, study.parts, 0, STAMP).run()
    runs = [run for run, _ in ledger.items()]
    assert runs[:3] == [Sum(rate=rate) for rate in (1.0, 2.0, 3.0)]
    assert runs[3:] == [Sum(Inner("b"), 2.0, seed) for seed in range(3)]
    assert outstanding(study, ledger, study.parts) == []
    assert {result["revision"] for _, result in ledger.items()} == {"abc"}


def test_finished_runs_are_not_trained_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    for seeds in (1, 3):
        Training(Counting(seeds=seeds), Ledger(Sum, path), Counting.parts, 0, STAMP).run()
    assert len(path.read_text().splitlines()) == 6


def test_processes_give_the_same_results_and_a_broken_run_is_passed_over(tmp_path):
    ledger = Ledger(Sum, tmp_path / "runs.jsonl")
    training = Training(Counting(broken=1), ledger, Counting.parts, 2, STAMP)
    training.run()
    assert list(training.failures) == [Sum(Inner("b"), 2.0, 1)]
    assert "on purpose" in str(training.failures[Sum(Inner("b"), 2.0, 1)])
    results = dict(ledger.items())
    assert {run.seed: result["value"] for run, result in results.items() if run.inner.name == "b"} == {
        0: 0,
        2: 2,
    }
    assert os.getpid() not in {result["process"] for result in results.values()}


def test_progress_says_how_much_is_left(tmp_path, capsys):
    Training(Counting(), Ledger(Sum), Counting.parts, 0, STAMP).run()
    lines = capsys.readouterr().err.splitlines()
    assert "1 of 6 runs" in lines[0]
    assert "6 of 6 runs, about 0 min left b 2.0 seed 2: 2" in " ".join(lines[-1].split())


def test_the_forecast_adds_up_over_the_parts():
    lines = forecast(Counting(), Ledger(Sum), ["tune", "main"], 2).splitlines()
    assert lines[0] == "tune: 3 runs, 3 min on one core"
    assert lines[1] == "main: 3 runs, 3 min on one core"
    assert lines[2].startswith("all: 6 runs to do, 6 min on one core, 3 min with 2 workers")


def _run(folder, *arguments):
    return command("counting", None, Counting(), Counting(seeds=1), [*arguments, "-o", str(folder)])


def test_the_command_trains_reports_and_refreshes_the_document(tmp_path, capsys):
    folder, document = tmp_path / "counting", tmp_path / "counting.md"
    document.write_text("# Title\n<!-- table: main -->\n\nold\n\n<!-- end -->\nrest\n")
    assert _run(folder, "--dry-run") == 0
    assert "6 runs to do" in capsys.readouterr().out
    assert not folder.exists()
    assert _run(folder, "--workers", "0") == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["main"]["mean"] == 1.0
    assert summary["runs"] == 6
    assert summary["command"].startswith("python -m benchmarks.counting --workers 0")
    assert summary["study"] == {"rates": [1.0, 2.0, 3.0], "seeds": 3, "broken": -1}
    assert {"torch", "processor", "vector_flags"} <= summary["environment"].keys()
    text = document.read_text()
    assert "| b | 1.00 ± 1.00 |" in text
    assert "old" not in text
    assert text.startswith("# Title\n")
    assert text.endswith("<!-- end -->\nrest\n")


def test_the_quick_form_has_a_ledger_of_its_own_and_leaves_the_document_alone(tmp_path):
    document = tmp_path / "counting.md"
    document.write_text("untouched")
    folder = tmp_path / "counting"
    assert _run(folder, "--quick", "--workers", "0") == 0
    assert document.read_text() == "untouched"
    assert len((folder / "quick.jsonl").read_text().splitlines()) == 4
    assert (folder / "quick" / "summary.json").exists()
    assert not (folder / "runs.jsonl").exists()


def test_a_document_without_the_place_for_a_table_is_named(tmp_path):
    (tmp_path / "counting.md").write_text("nothing")
    with pytest.raises(ValueError, match="table: main"):
        _run(tmp_path / "counting", "--report")
    assert (tmp_path / "counting.md").read_text() == "nothing"
