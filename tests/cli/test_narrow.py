"""`sparsify narrow`: its JSON object, its exit codes, and the archive that it writes."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from sparsify import api
from sparsify.archive import wrap
from tests.models import MLP


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    model = MLP().eval()
    model.inner[0].weight.data[3] = 0
    model.inner[3].weight.data[:, 5] = 0
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    api.save(wrap(api.trace(model, (torch.zeros(2, 12),))), path)
    return path


@pytest.fixture
def run(run):
    return partial(run, "narrow")


def test_dead_units_go_and_the_object_says_which(run, model_file, tmp_path):
    out = tmp_path / "small.pt2"
    data = json.loads(run(model_file, "-o", out, "--format", "json").out)
    removed = {group["id"]: group["removed"] for group in data["groups"]}
    assert removed == {"inner.0.weight[0]": [3, 5], "inner.3.weight[0]": []}
    assert data["parameters"]["after"] < data["parameters"]["before"]
    assert data["flops"]["after"] < data["flops"]["before"]
    assert data["max_abs_error"] < 1e-5 and data["output"] == str(out)
    assert {"head.weight[0]", "inner.0.weight[1]"} <= {refusal["fqn"] for refusal in data["refusals"]}
    x = torch.randn(4, 12)
    torch.testing.assert_close(api.load(out)(x), api.load(model_file)(x))


def test_text_shows_what_went_and_what_was_refused(run, model_file, tmp_path):
    text = run(model_file, "-o", tmp_path / "small.pt2").out
    assert "3, 5" in text and "width of a model output" in text and "largest absolute error" in text


def test_listed_units_and_their_errors(run, model_file, tmp_path):
    out = tmp_path / "small.pt2"
    listed = ("--units", "inner.3.weight[0]=1,2", "--units", "inner.3.weight[0]=4")
    data = json.loads(run(model_file, "-o", out, *listed, "--format", "json").out)
    assert data["groups"][1]["removed"] == [1, 2, 4] and data["max_abs_error"] > 1e-4
    out.unlink()
    refused = run(model_file, "-o", out, *listed, "--tolerance", "1e-6", code=3).err
    assert "where 1e-06 is allowed" in " ".join(refused.split())
    assert "no width group" in run(model_file, "-o", out, "--units", "fc=1", code=1).err
    assert "is not of the form" in run(model_file, "-o", out, "--units", "fc", code=1).err
    assert not out.exists()
