"""The study of sparse training methods at its toy size, whole: it ends, resumes and repeats itself."""

from __future__ import annotations

import json

import pytest

from benchmarks.study.command import command
from benchmarks.topology.runs import METHODS
from benchmarks.topology.study import FULL, QUICK
from sparsify.train.sources import FASHION_MNIST

pytestmark = pytest.mark.skipif(
    not FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


def _run(folder, *arguments):
    given = ["--quick", "--workers", "0", "-o", str(folder), *arguments]
    return command("topology", None, FULL, QUICK, given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a finished quick study."""
    folder = tmp_path_factory.mktemp("topology")
    assert _run(folder) == 0
    return folder


def _lines(folder):
    return [json.loads(line) for line in (folder / "quick.jsonl").read_text().splitlines()]


def test_every_method_ends_at_the_density_asked_for(finished):
    lines = _lines(finished)
    lenet = {line["method"]: line for line in lines if line["model"] == "lenet"}
    assert set(lenet) == set(METHODS)
    assert {line["method"] for line in lines if line["model"] == "resnet"} > {"rigl", "srigl", "gmp"}
    compared = 0
    for line in lines:
        exact = METHODS[line["method"]].pattern == "unstructured"
        if line["method"] != "dense":
            wanted = line["density"]
            tolerance = 0.002 if exact else 0.2
            assert line["sparse_density"] == pytest.approx(wanted, rel=tolerance), line["method"]
            compared += 1
        assert 0 <= line["accuracy"] <= 100
        assert line["revision"]
    assert compared >= 11


def test_the_summary_and_the_plot_are_written(finished):
    summary = json.loads((finished / "quick" / "summary.json").read_text())
    assert summary["runs"] == len(_lines(finished))
    assert summary["lenet"]["accuracy"]["rigl"]["0.05"]["seeds"].keys() == {"0"}
    assert (finished / "quick" / "accuracy.png").stat().st_size > 5000


def test_a_run_that_was_cut_short_is_done_again_and_comes_out_the_same(finished):
    file, before = finished / "quick.jsonl", _lines(finished)
    lines = file.read_text().splitlines()
    dropped = next(index for index, line in enumerate(before) if line["method"] == "set")
    file.write_text("\n".join([*lines[:dropped], *lines[dropped + 1 :], lines[dropped][:40]]))
    assert _run(finished, "--part", "lenet") == 0
    again = json.loads(file.read_text().splitlines()[-1])
    assert again["method"] == "set"
    for measure in ("accuracy", "loss", "kept"):
        assert again[measure] == pytest.approx(before[dropped][measure], rel=1e-6)
