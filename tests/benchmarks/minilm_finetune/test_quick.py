"""The study of sparse fine-tuning with a tiny BERT, whole: it ends, resumes, and fills its table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.minilm_finetune import latency
from benchmarks.minilm_finetune.source import functions
from benchmarks.minilm_finetune.study import FULL, QUICK
from benchmarks.study.command import command

pytest.importorskip("transformers")


@pytest.fixture(scope="module", autouse=True)
def two_repeats():
    """Of every timing, so that a median is taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "REPEATS", 2)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    quick = replace(QUICK, methods=("gmp",), models=str(folder / "models"))

    def call():
        assert (
            command("minilm_finetune", None, FULL, quick, ["--quick", "--workers", "0", "-o", str(folder)])
            == 0
        )
        return [json.loads(line) for line in (folder / "quick.jsonl").read_text().splitlines()], folder

    return call


def test_every_model_is_trained_exported_and_timed(run):
    lines, folder = run()
    found = {(line["method"], line["distilled"]): line for line in lines}
    assert set(found) == {
        ("dense", False), ("one-shot", False), ("gmp", False), ("gmp", True), ("latency", False)
    }  # fmt: skip
    for line in lines:
        if line["method"] != "latency":
            wanted = 1.0 if line["method"] == "dense" else 0.1
            assert line["masked_density"] == pytest.approx(wanted, abs=0.002)
    timed = found["latency", False]["latency"]
    assert set(timed) == {"dense-1-seed0", "gmp-0.1-seed0", "gmp-0.1-distilled-seed0"}
    assert timed["gmp-0.1-seed0"]["latency_ms"]["8"].keys() == {"dense", "sparse"}
    summary = json.loads((folder / "quick" / "summary.json").read_text())
    assert summary["models"]["gmp-0.1-seed0"]["distilled"]["seeds"].keys() == {"0"}
    assert len(run()[0]) == len(lines), "started again, it has nothing to do"


def test_functions_of_one_file_are_never_on_both_sides():
    data = functions(4, 100, 100, 24, False)
    assert len(data.train) > len(data.test) > 40
    assert set(data.train.targets.tolist()) == set(data.test.targets.tolist()) == {0, 1, 2, 3}
    assert (data.train.keywords["attention_mask"].sum(1) > 3).all()
    rows = {tuple(row.tolist()) for row in data.train.keywords["input_ids"]}
    shared = sum(tuple(row.tolist()) in rows for row in data.test.keywords["input_ids"])
    assert shared < 0.1 * len(data.test)
