from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from sparsify.errors import UserError
from sparsify.train import Arrays, Data, finetune
from sparsify.train.distill import Distillation
from tests.train.tasks import network, points, sequences, token_network, values

RUN = {"steps": 60, "batch_size": 16, "lr": 0.02, "progress": False}


@pytest.mark.parametrize(("data", "model"), [(points(), network), (sequences(), token_network)])
def test_the_loss_is_hintons(data, model):
    teacher, student = model(1).eval(), model(2).eval()
    batch = data.test.batch(torch.arange(8))
    output, given = student(*batch.args), teacher(*batch.args)
    base = torch.tensor(3.0)
    found = Distillation(teacher, weight=0.3, temperature=4.0)(base, output, batch, data, nullcontext())
    p, q = (given / 4).softmax(-1), (output / 4).softmax(-1)
    rows = (p * (p / q).log()).sum(-1)[batch.targets != -100]
    torch.testing.assert_close(found, 0.7 * base + 0.3 * 16 * rows.mean())


def test_values_are_compared_by_their_square():
    teacher, student, data = nn.Linear(4, 1), nn.Linear(4, 1), values()
    batch = data.test.batch(torch.arange(8))
    found = Distillation(teacher, weight=1.0, temperature=2.0)(
        torch.tensor(0.0), student(*batch.args), batch, data, nullcontext()
    )
    expected = (student(*batch.args) - teacher(*batch.args)).square().mean()
    torch.testing.assert_close(found, expected)


def test_a_student_learns_from_the_teacher_what_wrong_labels_would_not_tell():
    data = points()
    teacher = network(masked=False)
    finetune(teacher, data, method="dense", **RUN)
    weights = copy.deepcopy(teacher.state_dict())
    wrong = Arrays(data.train.inputs, torch.zeros_like(data.train.targets))
    blind = Data("blind", data.task, wrong, data.test)
    modes = []
    teacher.train()[3].register_forward_pre_hook(
        lambda m, a: modes.append((m.training, torch.is_grad_enabled()))
    )
    result = finetune(network(3), blind, method="static", distill=teacher, distill_weight=1.0, **RUN)
    assert result.metrics["accuracy"] > 0.8
    assert finetune(network(3), blind, method="static", **RUN).metrics["accuracy"] < 0.5
    assert set(modes) == {(False, False)} and teacher.training
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_teachers_that_do_not_fit_are_refused():
    model = network()
    other = nn.Sequential(nn.Linear(6, 4))
    for teacher, message in (
        (other, r"teacher returns \(2, 4\) where the model returns \(2, 3\)"),
        (nn.Linear(7, 3), "teacher does not run on points"),
        (model, "shares parameters"),
    ):
        with pytest.raises(UserError, match=message):
            finetune(model, points(), method="static", distill=teacher, **RUN)


def test_a_run_resumes_with_its_own_teacher_only(tmp_path):
    options = {**RUN, "steps": 4, "method": "static", "output": tmp_path / "m.pt2"}
    finetune(network(), points(), distill=network(5), **options)
    with pytest.raises(UserError, match="teacher"):
        finetune(network(), points(), distill=network(6), resume=True, **options)
    finetune(network(), points(), distill=network(5), resume=True, **options)
