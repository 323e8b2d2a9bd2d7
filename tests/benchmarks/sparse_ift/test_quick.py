"""The study of Sparse-IFT at its toy size, whole: every model has the FLOPs of its base."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks.sparse_ift.models import build, costs
from benchmarks.sparse_ift.study import FULL, QUICK
from benchmarks.study.command import command
from sparsify.train.sources import FASHION_MNIST

IMAGE_PARTS = ("wide", "drop-in", "scaled")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output folder of a finished quick study, without the ResNet where its images are not installed."""
    folder = tmp_path_factory.mktemp("sparse_ift")
    parts = [] if FASHION_MNIST.is_dir() else ["--part", "text"]
    arguments = ["--quick", "--workers", "0", *parts, "-o", str(folder)]
    assert command("sparse_ift", None, FULL, QUICK, arguments) == 0
    return folder


def _lines(folder):
    return [json.loads(line) for line in (folder / "quick.jsonl").read_text().splitlines()]


def test_models_have_the_flops_of_their_base_and_wider_dense_ones_more(finished):
    sparse = [line for line in _lines(finished) if line["family"] != "dense"]
    wider = [line for line in _lines(finished) if line["family"] == "dense" and line["sparsity"]]
    assert sparse
    assert wider
    assert all(line["flops_ratio"] == pytest.approx(1, abs=0.002) for line in sparse)
    assert all(line["masked_density"] < 0.6 for line in sparse)
    assert all(line["flops_ratio"] > 1.5 and line["masked_density"] == 1 for line in wider)


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_every_family_is_trained_and_reported(finished):
    lines = _lines(finished)
    assert {line["family"] for line in lines} == {"dense", "wide", "parallel", "factorized", "doped"}
    assert {line["parameterization"] for line in lines} == {"sp", "supar"}
    summary = json.loads((finished / "quick" / "summary.json").read_text())
    assert all(summary[part]["cells"] for part in QUICK.parts)
    assert summary["text"]["measure"] == "loss"
    assert (finished / "quick" / "resnet.png").stat().st_size > 5000


def test_a_model_with_other_flops_than_its_base_is_refused():
    dense = QUICK.base("wide")
    wider = replace(dense, sparsity=0.75)
    model = build(wider)
    assert costs(model, wider)["flops_ratio"] > 3
    with pytest.raises(ValueError, match="times the FLOPs"):
        costs(model, replace(wider, family="wide"))
