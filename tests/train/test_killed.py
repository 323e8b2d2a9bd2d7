"""A run that is killed at whatever moment ends with the same numbers, for every method that changes masks."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time

import matplotlib.figure  # noqa: F401 - imported once, by the server that the killed processes are forked from
import pytest
import torch
import torch._dynamo

from sparsify.train import checkpoint, finetune
from tests.train.tasks import fan_in_network, network, points

METHODS = {
    "rigl": (network, {"method_options": {"window": 3}}),
    "srigl": (fan_in_network, {"method_options": {"pattern": "fan-in", "gamma": 0.5}}),
    "sparse-momentum": (network, {"optimizer": "sgd"}),
    "gmp": (lambda: network(masked=False), {"method_options": {"target": 0.25}}),
    "wgsef": (lambda: network(masked=False), {"method_options": {"groups": "neurons", "keep": 0.5}}),
}
STEPS = 160


def train(method, output):
    torch.set_num_threads(1)
    build, options = METHODS[method]
    result = finetune(
        build(), points(examples=192), method=method, output=output, steps=STEPS, batch_size=16, lr=0.01,
        update_every=7, evaluate_every=10, progress=False, resume=True, **options,
    )  # fmt: skip
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in result.history]
    torch.save(result.model.state_dict(), output)
    output.with_suffix(".json").write_text(json.dumps([rows, result.metrics, list(result.events)]))


@pytest.fixture(scope="module")
def start():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.test_killed"])

    def begin(method, output):
        process = context.Process(target=train, args=(method, output))
        process.start()
        return process

    return begin


def _written(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def _kill_soon(process, last, moments):
    """Kills after two more checkpoints and a moment, in a step or while something is written."""
    for _ in range(2):
        before = _written(last)
        while process.is_alive() and _written(last) == before:
            time.sleep(0.001)
    time.sleep(moments.uniform(0, 0.03))
    process.kill()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_with_the_same_numbers(start, method, tmp_path):
    moments = random.Random(method)
    whole = start(method, tmp_path / "whole.pt")
    last = tmp_path / "killed.pt.ckpt" / "last.safetensors"
    middles = 0
    for _ in range(2):
        if _kill_soon(start(method, tmp_path / "killed.pt"), last, moments):
            middles += 0 < checkpoint.read(last)["step"] < STEPS
    assert middles, "no kill hit the run before its end"
    for process in (start(method, tmp_path / "killed.pt"), whole):
        process.join(120)
        assert process.exitcode == 0
    states = [torch.load(tmp_path / f"{name}.pt") for name in ("whole", "killed")]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    rows, metrics, events = json.loads((tmp_path / "whole.json").read_text())
    assert json.loads((tmp_path / "killed.json").read_text()) == [rows, metrics, events]
    changes = [row["churn"] for row in rows if row["churn"]]
    assert changes, "the topology must change for the test to say anything"
    assert bool(events) == (method == "wgsef")
