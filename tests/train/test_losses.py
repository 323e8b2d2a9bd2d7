from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsify.errors import UserError
from sparsify.train import Arrays, Data, finetune
from sparsify.train.objective import evaluate, make_loss
from tests.train.tasks import network, points, sequences, token_network, values

RUN = {"method": "dense", "steps": 2, "batch_size": 16, "progress": False}


def test_labels_are_smoothed_in_training_only():
    loss = make_loss(points(), "cross-entropy", 0.2)
    logits, classes = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = F.cross_entropy(logits, classes, label_smoothing=0.2)
    assert torch.equal(loss(logits, classes, training=True), expected)
    assert torch.equal(loss(logits, classes, training=False), F.cross_entropy(logits, classes))


def test_padding_counts_neither_in_the_loss_nor_in_the_metrics():
    data, model = sequences(), token_network()
    metrics = evaluate(model, data, batch_size=5, device=torch.device("cpu"))
    inputs, targets = data.test.inputs[0], data.test.targets
    with torch.no_grad():
        expected = F.cross_entropy(model(inputs)[targets != -100], targets[targets != -100])
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(float(expected) / math.log(2), rel=1e-5)


def test_a_function_of_the_users_own_is_minimised_and_reported():
    torch.manual_seed(0)
    run = {**RUN, "steps": 60, "optimizer": "sgd", "lr": 0.05, "loss": "tests.train.tasks:absolute_error"}
    result = finetune(nn.Linear(4, 1), values(), **run)
    x, y = values().test.inputs[0], values().test.targets
    error = float((result.model(x)[:, 0] - y).abs().mean().detach())
    assert result.metrics["loss"] == pytest.approx(error, rel=1e-5)
    assert result.metrics["loss"] < 0.3


def test_a_loss_on_outputs_that_are_no_logits_leaves_accuracy_out():
    def margin(output, targets):
        return (output["scores"].gather(1, targets[:, None])[:, 0] - 1).square().mean()

    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return {"scores": self.layer(x), "logits": torch.zeros(1)}

    metrics = finetune(Scores(), points(), **RUN, loss=margin).metrics
    assert "accuracy" not in metrics and "loss" in metrics


class WithLoss(nn.Module):
    """As transformers' models: labels in, loss and logits out."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        return (2 * F.cross_entropy(logits, labels), logits)


def test_the_loss_of_the_model_itself_can_be_taken():
    plain = points()
    parts = [
        Arrays(part.inputs, part.targets, {"labels": part.targets}) for part in (plain.train, plain.test)
    ]
    data = Data("labelled", "classification", *parts)
    torch.manual_seed(0)
    own = finetune(WithLoss(), data, **RUN, loss="model")
    torch.manual_seed(0)
    ours = finetune(WithLoss(), data, **RUN)
    first = [result.history[0] for result in (own, ours)]
    assert first[0]["test_loss"] == pytest.approx(2 * first[1]["test_loss"], rel=1e-5)
    assert "accuracy" in own.metrics


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (points(), {"loss": "mse"}, "'mse' does not fit points"),
        (values(), {"loss": "cross-entropy"}, "'cross-entropy' does not fit values"),
        (points(), {"loss": "hinge"}, "unknown loss 'hinge'"),
        (points(), {"loss": "tests.train.tasks:absent"}, "cannot be imported"),
        (points(), {"loss": lambda output, targets: output}, "must return the mean"),
        (points(), {"loss": "model"}, "without a loss"),
        (values(), {"label_smoothing": 0.1}, "label_smoothing applies to"),
    ],
)
def test_losses_that_do_not_fit_are_refused(data, options, message):
    model = nn.Linear(4, 1) if data.task == "regression" else network(masked=False)
    with pytest.raises(UserError, match=message):
        finetune(model, data, **{**RUN, **options})
