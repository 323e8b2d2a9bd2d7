"""Precision, accumulation, early metrics, logs, what is kept, and divergence of gradients and weights."""

from __future__ import annotations

import csv
import sys

import pytest
import torch
from torch import nn

from sparsify.errors import UserError
from sparsify.masks import masked_parameters
from sparsify.train import Options, TrainingDivergedError, checkpoint, finetune
from tests.train.tasks import network, points, sequences, token_network

RUN = {"steps": 40, "batch_size": 16, "lr": 0.02, "update_every": 4, "progress": False}


def test_a_batch_in_parts_makes_the_same_step():
    models = [token_network() for _ in range(2)]
    for model, parts in zip(models, (1, 5), strict=True):
        finetune(model, sequences(), method="dense", accumulate=parts, **{**RUN, "optimizer": "sgd"})
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_bf16_runs_the_forward_pass_in_bfloat16_and_keeps_weights_in_float32():
    seen = []
    model = network()
    model[4].register_forward_hook(lambda m, a, output: seen.append((m.training, output.dtype)))
    result = finetune(model, points(), precision="bf16", **RUN)
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}
    assert result.metrics["accuracy"] > 0.8
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_metrics_come_early_unless_only_the_end_is_asked_for():
    early = finetune(network(), points(), evaluate_every=20, **RUN).history
    tested = [row["step"] for row in early if "test_accuracy" in row]
    assert tested == [0, 2, 6, 20, 40] and early[0]["loss"] is None
    late = finetune(network(), points(), evaluate_every=40, **RUN).history
    assert [row["step"] for row in late if "test_accuracy" in row] == [40]
    assert early[-1]["test_loss"] == late[-1]["test_loss"], "measuring must not change the run"


def test_churn_tells_how_many_positions_were_exchanged(tmp_path):
    model = network()
    history = finetune(model, points(), output=tmp_path / "m.pt2", drop_fraction=0.5, **RUN).history
    churn = {row["step"]: row["churn"] for row in history}
    assert churn[3] == 0.0 and 0.0 < churn[4] <= 0.5 and churn[40] == 0.0
    with (tmp_path / "m.pt2.ckpt" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["churn"]) for row in rows] == list(churn.values())
    assert all(float(row["gradient_norm"]) > 0 for row in rows[1:])
    static = finetune(network(), points(), method="static", **RUN).history
    assert {row["churn"] for row in static} == {0.0}


def test_gradual_pruning_keeps_no_denser_model_as_its_best(tmp_path):
    model = network(masked=False)
    options = {**RUN, "method_options": {"target": 0.05, "stop_fraction": 0.5}}
    result = finetune(model, points(), method="gmp", output=tmp_path / "m.pt2", keep="best", **options)
    best = checkpoint.read(tmp_path / "m.pt2.ckpt" / "best.safetensors")
    assert best["step"] >= 20
    assert result.density == pytest.approx(0.05, abs=0.02)
    assert {name: result.metrics[name] for name in ("loss", "accuracy")} == best["metrics"]
    for name, tensor in best["model"].items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_hard_finish_is_measured_on_both_sides():
    model = network(masked=False)
    options = {"groups": "neurons", "keep": 0.5}
    result = finetune(model, points(), method="wgsef", method_options=options, **RUN)
    (event,) = result.events
    assert event["event"] == "hard finish" and {"accuracy", "loss"} <= event["before"].keys()
    assert event["after"] != event["before"]
    assert result.history[-1]["groups_alive"] == event["kept"] == 16
    assert all(
        not bool(entry.mask.all()) for fqn, entry in masked_parameters(model).items() if fqn == "0.weight"
    )


def test_tensorboard_holds_the_numbers_of_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = finetune(network(), points(), output=tmp_path / "m.pt2", tensorboard=True, **RUN)
    events = EventAccumulator(str(tmp_path / "m.pt2.ckpt" / "tensorboard")).Reload()
    found = {event.step: event.value for event in events.Scalars("test/accuracy")}
    expected = {row["step"]: row["test_accuracy"] for row in result.history if "test_accuracy" in row}
    assert found == pytest.approx(expected)
    assert len(events.Scalars("training/loss")) == len(result.history) - 1


def test_a_missing_tensorboard_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"sparsify-ift\[tensorboard\]"):
        finetune(network(), points(), output=tmp_path / "m.pt2", tensorboard=True, **RUN)


class Blowing(nn.Module):
    """Breaks its gradient at one training step."""

    def __init__(self, at):
        super().__init__()
        self.inner, self.left = network(), at

    def forward(self, x):
        out = self.inner(x)
        self.left -= self.training
        if self.training and self.left == 0:
            out.register_hook(lambda grad: grad * torch.inf)
        return out


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    model = Blowing(15)
    with pytest.raises(
        TrainingDivergedError, match=r"step 14: the gradient of inner.* \(step 10\).*[Ll]ower lr"
    ):
        finetune(model, points(), output=tmp_path / "m", evaluate_every=10, **RUN)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert (tmp_path / "m.ckpt" / "log.png").exists()


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.unread = network(), nn.Parameter(torch.zeros(2))
            self.left = 15

        def forward(self, x):
            self.left -= self.training
            if self.left == 0:
                self.unread.data.fill_(torch.nan)
            return self.inner(x)

    with pytest.raises(TrainingDivergedError, match=r"step 20: unread is not finite.*\(step 10\)"):
        finetune(Silent(), points(), output=tmp_path / "m", evaluate_every=10, **RUN)
    state = checkpoint.read(tmp_path / "m.ckpt" / "last.safetensors")
    assert state["step"] == 10 and all(bool(t.isfinite().all()) for t in state["model"].values())


def test_options_of_the_method_reach_it():
    resolved = Options.parse({"drop_fraction": 0.1, "method_options": {"window": 2}}).resolve(points())
    assert resolved.method_options == {"window": 2, "drop_fraction": 0.1}
    with pytest.raises(UserError, match="'dense' changes no topology"):
        Options.parse({"method": "dense", "stop_fraction": 0.5}).resolve(points())
