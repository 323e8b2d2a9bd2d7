"""The study of WGSEF at its toy size, whole: it ends, resumes and repeats itself."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.study.command import command
from benchmarks.study.engine import outstanding
from benchmarks.study.ledger import Ledger
from benchmarks.wgsef.runs import Run
from benchmarks.wgsef.study import FULL, QUICK
from sparsify.train.sources import FASHION_MNIST

DOCUMENT = Path(__file__).parents[3] / "docs" / "results" / "wgsef.md"
needs_data = pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


def _run(folder, *arguments):
    return command("wgsef", None, FULL, QUICK, ["--quick", "--workers", "0", "-o", str(folder), *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a finished quick study."""
    folder = tmp_path_factory.mktemp("wgsef")
    assert _run(folder) == 0
    return folder


def _lines(folder):
    return [json.loads(line) for line in (folder / "quick.jsonl").read_text().splitlines()]


@needs_data
def test_both_penalties_end_with_the_same_number_of_filters(finished):
    lines = _lines(finished)
    sparse = {line["method"]: line for line in lines if "k" in line}
    assert set(sparse) == {"wgsef", "lasso"}
    for line in sparse.values():
        assert line["groups"] - sum(line["gone"]) == line["k"] == round(line["groups"] / 2)
        assert line["narrow_accuracy"] == pytest.approx(line["accuracy"], abs=0.5)


@needs_data
def test_what_is_left_is_timed_beside_the_dense_model(finished):
    timings = [line for line in _lines(finished) if "exact" in line]
    assert len(timings) == 2
    for line in timings:
        exact, blocks = line["exact"], line["blocks"]
        assert exact["flops"][1] < 0.6 * exact["flops"][0]
        assert exact["flops"][1] <= blocks["flops"][1] <= blocks["flops"][0]
        assert exact["bytes"]["narrow"] < exact["bytes"]["dense"]
        for batch in ("1", "64"):
            ratio = exact["dense_ms"][batch] / exact["narrow_ms"][batch]
            assert exact["speedup"][batch] == pytest.approx(ratio, rel=1e-3)


@needs_data
def test_the_summary_the_plot_and_the_tables_are_written(finished, tmp_path):
    summary = json.loads((finished / "quick" / "summary.json").read_text())
    assert len(summary["cells"]) == 2
    for cell in summary["cells"]:
        assert all(
            cell["narrowed"][form]["latency"]["1"]["speedup"]["mean"] > 0 for form in ("exact", "blocks")
        )
    assert (finished / "quick" / "accuracy.png").stat().st_size > 5000
    document = tmp_path / "wgsef.md"
    table = re.compile(r"(<!-- table: .*? -->\n).*?(<!-- end -->)", re.DOTALL)
    document.write_text(table.sub(r"\1Not run yet.\n\2", DOCUMENT.read_text()))
    QUICK.report(Ledger(Run, finished / "quick.jsonl"), tmp_path, document)
    text = document.read_text()
    assert text.count("| WGSEF, 50 % |") == 3  # accuracy, and two forms of widths
    assert text.count("Not run yet") == 2  # the other model


@needs_data
def test_a_run_that_was_cut_short_is_done_again_and_comes_out_the_same(finished):
    file, before = finished / "quick.jsonl", _lines(finished)
    lines = file.read_text().splitlines()
    dropped = next(i for i, line in enumerate(before) if line["method"] == "wgsef" and "k" in line)
    file.write_text("\n".join([*lines[:dropped], *lines[dropped + 1 :], lines[dropped][:40]]))
    assert _run(finished, "--part", "vgg") == 0
    again = json.loads(file.read_text().splitlines()[-1])
    for measure in ("accuracy", "loss", "before", "gone"):
        assert again[measure] == pytest.approx(before[dropped][measure], rel=1e-6)


def test_the_whole_study_is_counted_with_its_timings():
    rest = outstanding(FULL, Ledger(Run), FULL.parts)
    assert len(rest) == 2 * 3 * 5 + 2 * 3 * 4
    assert sum(FULL.seconds(run) for run in rest) / 2 < 40 * 60
