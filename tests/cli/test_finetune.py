"""`sparsify finetune`: every option reaches the run, and what it says and writes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsify import api
from sparsify._finetune import parse_method_options
from sparsify.archive import wrap
from sparsify.errors import UserError
from sparsify.train import checkpoint


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A dense model, one like it with masks, and one with other outputs."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    example = (torch.zeros(2, 1, 8, 8),)
    for name, classes in (("dense", 10), ("other", 4)):
        layers = [
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 32),
            nn.ReLU(),
            nn.Linear(32, classes),
        ]
        model = nn.Sequential(*layers)
        api.save(wrap(api.trace(model, example)), folder / f"{name}.pt2")
        if name == "dense":
            masked = api.transform(model, example, family="masked", sparsity=0.8, init="preserve")
            api.save(masked, folder / "sparse.pt2")
    return folder


def test_options_reach_the_run(run, files, tmp_path):
    out = tmp_path / "out.pt2"
    words = (
        "finetune", files / "sparse.pt2", "--data", "digits", "-o", out, "--method", "rigl", "--steps", "12",
        "--batch-size", "32", "--accumulate", "2", "--schedule", "linear", "--warmup", "0.25", "--clip", "2",
        "--label-smoothing", "0.1", "--distill", files / "dense.pt2", "--distill-weight", "0.4",
        "--temperature", "3", "--update-every", "3", "--drop-fraction", "0.2", "--stop-fraction", "0.9",
        "--method-option", "window=2", "--evaluate-every", "6", "--seed", "4", "--format", "json",
    )  # fmt: skip
    data = json.loads(run(*words).out)
    assert data["density"] == pytest.approx(0.2, abs=1e-3) and data["events"] == []
    assert data["flops"] == data["flops_planned"] > 0
    assert data["checkpoints"] == f"{out}.ckpt"
    stored = checkpoint.read(tmp_path / "out.pt2.ckpt" / "last.safetensors")["run"]
    expected = {"schedule": "linear", "warmup": 0.25, "clip": 2.0, "accumulate": 2, "label_smoothing": 0.1}
    assert {name: stored[name] for name in expected} == expected
    assert stored["method_options"] == {"window": 2, "drop_fraction": 0.2, "stop_fraction": 0.9}
    assert stored["teacher"]["weight"] == 0.4 and stored["teacher"]["temperature"] == 3.0
    again = json.loads(run(*words, "--resume").out)
    assert again["metrics"] == data["metrics"]
    assert "lr (was" in run(*words, "--resume", "--lr", "0.5", code=1).err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "lottery"), "not one of dense, static"),
        (("--method", "gmp"), "initial_density"),
        (("--method-option", "gamma=1"), "rigl has no option 'gamma'"),
        (("--method-option", "window"), "name=value"),
        (("--loss", "mse"), "does not fit"),
        (("--loss", "nowhere:loss"), "cannot be imported"),
        (("--distill", "other.pt2"), "(2, 4) where the model returns (2, 10)"),
        (("--precision", "fp8"), "fp32, bf16"),
    ],
)
def test_mistakes_are_explained(run, files, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(files)
    base = ("finetune", "sparse.pt2", "--data", "digits", "--steps", "2", "-o", tmp_path / "o.pt2")
    assert message in run(*base, *words, code=1).err
    assert not (tmp_path / "o.pt2").exists()


def test_data_and_losses_of_the_working_folder_are_found(run, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_task_of_tests.py").write_text(
        "import torch\n"
        "def data():\n    x = torch.randn(40, 1, 8, 8)\n    return {'x': x, 'y': x.flatten(1)[:, :10]}\n"
        "def loss(output, targets):\n    return (output - targets).abs().mean()\n"
    )
    words = ("--data", "my_task_of_tests:data", "--loss", "my_task_of_tests:loss", "--steps", "2")
    data = json.loads(run("finetune", files / "sparse.pt2", *words, "-o", "o.pt2", "--format", "json").out)
    assert set(data["metrics"]) == {"loss", "train_loss"}


def test_values_of_method_options_are_json_or_text():
    found = parse_method_options(["gamma=0.3", "ablation=false", "groups=filters", 'only=["a"]', "a-b=1"])
    assert found == {"gamma": 0.3, "ablation": False, "groups": "filters", "only": ["a"], "a_b": 1}
    with pytest.raises(UserError, match="twice"):
        parse_method_options(["a=1", "a=2"])


def test_flops_that_drifted_from_the_plan_are_shown(run, files, tmp_path):
    words = ("finetune", files / "sparse.pt2", "--data", "digits", "--steps", "6", "--update-every", "1")
    words += ("--method", "sparse-momentum", "--lr", "0.01", "-o", tmp_path / "out.pt2")
    data = json.loads(run(*words, "--format", "json").out)
    assert data["flops"] > 0 and data["flops_planned"] > 0
    share = f"{data['flops'] / data['flops_planned']:.4g} times the planned"
    assert f"{data['flops']:,}, {share}" in run(*words).out


@pytest.mark.parametrize("method", ["wgsef", "group-lasso"])
def test_a_dense_archive_loses_whole_neurons_and_then_gets_smaller(run, files, tmp_path, method):
    words = ("--data", "digits", "--method", method, "--method-option", "keep=0.5", "--steps", "20")
    out = tmp_path / "o.pt2"
    data = json.loads(run("finetune", files / "dense.pt2", *words, "-o", out, "--format", "json").out)
    (event,) = data["events"]
    assert event["kept"] == 32 and event["before"]["accuracy"] >= 0 and event["after"]["accuracy"] >= 0
    small = json.loads(run("narrow", out, "-o", tmp_path / "small.pt2", "--format", "json").out)
    assert small["parameters"]["after"] < 0.7 * small["parameters"]["before"]
